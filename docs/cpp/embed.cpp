// Two aligned faces, one score, one thread: a model of `python -m facelab.export format=openvino mirror=true batch=1`.
//
//   g++ -std=c++17 -O2 embed.cpp -o embed -I"$OPENVINO/include" -L"$OPENVINO/libs" -l:libopenvino.so.… \
//       -Wl,-rpath,"$OPENVINO/libs"          (docs/export.md says where these lie)
//   ./embed model.xml a.rgb b.rgb
//
// A .rgb holds the bytes of an aligned face as the model takes it: size × size × 3, RGB, row by row. From Python:
// image.tofile("a.rgb"), image being (112,112,3) uint8.

#include <openvino/openvino.hpp>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

static std::vector<uint8_t> read_pixels(const std::string& path, size_t expected) {
    std::ifstream file(path, std::ios::binary);
    std::vector<uint8_t> pixels((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (pixels.size() != expected)
        throw std::runtime_error(path + ": has " + std::to_string(pixels.size()) + " bytes, and the model takes " +
                                 std::to_string(expected));
    return pixels;
}

// The embedding of one face, as the file gives it.
static std::vector<float> embed(ov::InferRequest& request, const ov::Shape& shape, std::vector<uint8_t>& pixels) {
    request.set_input_tensor(ov::Tensor(ov::element::u8, shape, pixels.data()));
    request.infer();
    const ov::Tensor output = request.get_output_tensor();
    const float* first = output.data<float>();
    return std::vector<float>(first, first + output.get_size());
}

int main(int count, char** words) try {
    if (count != 4) throw std::runtime_error("embed model.xml a.rgb b.rgb");
    ov::Core core;
    std::shared_ptr<ov::Model> model = core.read_model(words[1]);
    const ov::PartialShape taken = model->input().get_partial_shape();
    if (taken.rank().get_length() != 4 || taken[3].get_length() != 3 || model->input().get_element_type() != ov::element::u8)
        throw std::runtime_error("takes no uint8 (B,H,W,3): export it with preprocessing=true");
    // What the file says of itself is in rt_info; bf16 has to be asked for, and fp32 too where a processor has bf16.
    const std::string told = model->get_rt_info<std::string>("facelab", "metadata");
    const bool half = told.find("\"precision\": \"bf16\"") != std::string::npos;
    ov::CompiledModel compiled = core.compile_model(
        model, "CPU", ov::inference_num_threads(1), ov::num_streams(1),
        ov::hint::inference_precision(half ? ov::element::bf16 : ov::element::f32));
    ov::InferRequest request = compiled.create_infer_request();

    const size_t height = taken[1].get_length(), width = taken[2].get_length();
    const ov::Shape shape{1, height, width, 3};
    std::vector<std::vector<float>> rows;
    for (int face = 2; face < 4; ++face) {
        std::vector<uint8_t> pixels = read_pixels(words[face], height * width * 3);
        rows.push_back(embed(request, shape, pixels));
    }
    double product = 0, a = 0, b = 0;
    for (size_t i = 0; i < rows[0].size(); ++i) {
        product += double(rows[0][i]) * rows[1][i];
        a += double(rows[0][i]) * rows[0][i];
        b += double(rows[1][i]) * rows[1][i];
    }
    std::cout.precision(9);
    std::cout << product / std::sqrt(a * b) << std::endl;
    return 0;
} catch (const std::exception& error) {
    std::cerr << "embed: " << error.what() << std::endl;
    return 1;
}
