"""One hostile sample of each kind of file that comes from elsewhere: refused in one line, and nothing of it has run.

Elsewhere: configurations in test_trusted.py; `.bin` pickles in benchmark/test_safe_pickle.py; a job called `<script>`
on the page of a comparison, and in its tables, in compare/test_page.py and test_tables.py.
"""

import ast
import contextlib
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from facelab.backbone.weights import load_weights
from facelab.benchmark.image_list import read_list
from facelab.benchmark.pair_files import read_folder
from facelab.benchmark.scores import read_arrays
from facelab.benchmark.search_files import read_mat
from facelab.compare.scores import read_scores
from facelab.data.recordio import RecordIOFaces
from facelab.export import examined
from facelab.export.base import Runtime
from facelab.export.examined import examine_program, examine_script
from facelab.export.to_exported_program import ExportedProgram
from facelab.export.to_torchscript import TorchScript
from facelab.training import exported
from facelab.verify.gallery import Gallery

FACELAB = Path(__file__).resolve().parents[2] / "facelab"


class Hostile:
    """Whoever unpickles it makes a file."""

    def __init__(self, ran: Path):
        self.ran = ran

    def __reduce__(self):
        return Path.touch, (self.ran,)


@pytest.fixture
def ran(tmp_path):
    """A file that is there if something has run, and may not be in the end."""
    place = tmp_path / "ran"
    yield place
    assert not place.exists(), "something out of a file has run"


def refused(function, *arguments, match=""):
    with pytest.raises(ValueError, match=match) as refusal:
        function(*arguments)
    assert "\n" not in str(refusal.value)


# Weights


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [lambda it: it, lambda it: {"weight": torch.ones(2, 2), "bias": it}])
def test_a_checkpoint_of_torch(tmp_path, ran, zipped, inside):
    file = tmp_path / "model.ckpt"
    torch.save(inside(Hostile(ran)), file, _use_new_zipfile_serialization=zipped)
    refused(load_weights, nn.Linear(2, 2), file, match=r"asks for .*which can run code; nothing was read")


def test_a_checkpoint_that_is_torchscript(tmp_path):
    file = tmp_path / "model.ckpt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(file))
    refused(load_weights, nn.Linear(2, 2), file, match="cannot be read")


def test_arrays_of_objects(tmp_path, ran):
    hostile = np.array([Hostile(ran)], dtype=object)
    np.savez(tmp_path / "a.npz", weight=hostile, stamp=hostile, embeddings=hostile)
    np.save(tmp_path / "a.npy", hostile, allow_pickle=True)
    refused(load_weights, nn.Linear(2, 2), tmp_path / "a.npz", match="cannot be read")
    refused(read_arrays, tmp_path / "a.npz", ["weight"], match="not a facelab score file")
    refused(read_scores, tmp_path / "a.npz", {}, match="no score file")
    for name in ("a.npz", "a.npy"):
        refused(exported._rows, tmp_path / name, match="cannot be read")


def forged_npy(shape):
    header = str({"descr": "<f4", "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"1234"


@pytest.mark.parametrize("shape", [(2**60,), (2**33, 2**33), (-1,), (10**30,)])
def test_arrays_that_say_they_are_huge(tmp_path, shape):
    (tmp_path / "a.npy").write_bytes(forged_npy(shape))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("weight", "bias", "stamp", "metrics", "notes", "name", "embeddings"):
            archive.writestr(f"{name}.npy", forged_npy(shape))
    refused(load_weights, nn.Linear(2, 2), tmp_path / "a.npz", match="cannot be read")
    refused(read_arrays, tmp_path / "a.npz", ["weight"], match="not a facelab score file")
    refused(exported._rows, tmp_path / "a.npy", match="cannot be read")


def test_safetensors_that_say_they_are_huge(tmp_path):
    for header in (b'{"x":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}}', b"{" * 5000, b"[]"):
        for length in (len(header), 2**63, 10**8):
            (tmp_path / "a").write_bytes(struct.pack("<Q", length) + header + bytes(8))
            refused(load_weights, nn.Linear(2, 2), tmp_path / "a", match="cannot be read")
            refused(Gallery.load, str(tmp_path / "a"), match="is no gallery")


# Programs


class Network(nn.Module):
    """(B,8,8,3) uint8 → (B,2)."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, images):
        return self.fc(images.float().mean((1, 2)))


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The members of an honest .pt2, by name."""
    file = tmp_path_factory.mktemp("honest") / "model.pt2"
    sides = {"images": {0: torch.export.Dim("batch", min=1)}}
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    torch.export.save(torch.export.export(Network().eval(), (images,), dynamic_shapes=sides), file)
    examine_program(file)
    reader = torch._C.PyTorchFileReader(str(file))
    return {name: reader.get_record(name) for name in reader.get_all_records() if name != ".data/serialization_id"}


def packed(file: Path, members) -> Path:
    writer = torch._C.PyTorchFileWriter(str(file))
    for name, content in members.items():
        if name != ".data/version":
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    return file


def changed(program, old: str, new: str):
    """The program with words in its graph in the place of others, wherever they stand."""
    text = program["models/model.json"].decode()
    assert old in text
    return {**program, "models/model.json": text.replace(old, new).encode()}


def opened(file: Path):
    return ExportedProgram().open(file, Runtime(threads=1))


def test_a_program_that_is_packed_anew_is_opened(program, tmp_path):
    assert opened(packed(tmp_path / "a.pt2", program)).run(np.zeros((3, 8, 8, 3), np.uint8)).shape == (3, 2)


def test_a_program_s_attacks_are_real(program, tmp_path):
    """Torch itself runs what stands there: if it ever stops to, this can be thrown away."""
    place = tmp_path / "done"
    buffer = io.BytesIO()
    torch.save((Hostile(place),), buffer)
    with contextlib.suppress(Exception):
        torch.export.load(packed(tmp_path / "a.pt2", {**program, "data/sample_inputs/model.pt": buffer.getvalue()}))
    assert place.exists()


def test_a_program_with_pickles(program, tmp_path, ran):
    for hostile in (pickle.dumps((Hostile(ran),)), _saved(Hostile(ran))):
        members = {**program, "data/sample_inputs/model.pt": hostile}
        refused(
            opened, packed(tmp_path / "a.pt2", members), match="asks for more than tensors; nothing of it was opened"
        )
        for kind in ("weights", "constants"):  # as torch's older versions named them
            members = {**program, f"data/{kind}/model.pt": hostile}
            refused(opened, packed(tmp_path / "a.pt2", members), match="asks for more than tensors")
    name = "data/weights/model_weights_config.json"
    config = json.loads(program[name])
    next(iter(config["config"].values()))["use_pickle"] = True
    members = {**program, name: json.dumps(config).encode(), "data/weights/weight_0": _saved(Hostile(ran))}
    refused(opened, packed(tmp_path / "a.pt2", members), match="unpickled")
    name = "data/constants/model_constants_config.json"
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
    config = json.dumps({"config": {"x": entry}}).encode()
    refused(opened, packed(tmp_path / "a.pt2", {**program, name: config}), match="asks for 'opaque_obj_0'")


def _saved(thing) -> bytes:
    buffer = io.BytesIO()
    torch.save((thing,), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["data/aotinductor/model/x.so", "x.pkl", "serialized_exported_program.json", "models/b.json"]
)
def test_a_program_with_more_than_a_graph(program, tmp_path, name):
    refused(opened, packed(tmp_path / "a.pt2", {**program, name: b"x"}), match="which no exported network has")


@pytest.mark.parametrize(
    "target",
    [
        *("torch.os.system", "torch.hub.load", "math.__loader__.load_module", "_operator.attrgetter", "torch.load"),
        *("torch.ops.aten.from_file.default", "torch.ops.image.write_file.default", "torch.ops.aten.linear.__class__"),
        *("#x:y", "torch.ops.aten.__class__.default", "torch.ops.aten.linear", "torch.ops.higher_order.cond"),
    ],
)
def test_a_program_that_calls_other_things(program, tmp_path, target):
    members = changed(program, "torch.ops.aten.linear.default", target)
    refused(opened, packed(tmp_path / "a.pt2", members), match="which no network needs")


def test_a_program_whose_expressions_are_python(program, tmp_path, ran):
    text = json.loads(program["models/model.json"])
    honest = next(value for value in _values(text, "expr_str") if "Symbol" in value)
    call = f"__import__('pathlib').Path('{ran}').touch()"
    for forged in (
        call,
        f"Symbol({call})",
        f"Max('{call}', 1)",
        "Symbol.__class__",
        f"[{call}]",
        "Integer(9**9**9)",
        "x",
    ):
        members = changed(program, json.dumps(honest)[1:-1], json.dumps(forged)[1:-1])
        refused(opened, packed(tmp_path / "a.pt2", members), match="has the expression")


def _values(tree, key):
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if name == key:
            yield value
        yield from _values(value, key)


def test_a_program_whose_names_are_python(program, tmp_path, ran):
    """Names become part of the code that torch makes of a graph."""
    members = changed(program, '"images"', json.dumps(f"images=__import__('pathlib').Path('{ran}').touch()"))
    refused(opened, packed(tmp_path / "a.pt2", members), match="has the name")
    members = changed(program, "fc.weight", 'x\\").y')
    refused(opened, packed(tmp_path / "a.pt2", members), match="has the name")


def test_a_program_whose_arguments_are_made_by_an_import(program, tmp_path):
    members = changed(program, "builtins.tuple", "collections.defaultdict")
    refused(opened, packed(tmp_path / "a.pt2", members), match="arguments of type 'collections.defaultdict'")


def test_operators_of_files_are_known_by_their_arguments():
    found = examined._of_files()
    assert {"from_file", "save"} <= found
    assert not {"einsum", "linear", "conv2d", "scaled_dot_product_attention"} & found  # einsum's path is none


class Writes(nn.Module):
    """What an operator of TorchScript can do."""

    def __init__(self, file: str):
        super().__init__()
        self.file = file

    def forward(self, x):
        return torch.from_file(self.file, shared=True, size=4) + x


def test_torchscript_that_writes_files(tmp_path, ran):
    file = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(Writes(str(ran))), str(file))
    refused(TorchScript().open, file, Runtime(size=8), match="names from_file, which no network needs")
    other = tmp_path / "real"  # the attack is real: torch itself makes the file
    torch.jit.save(torch.jit.script(Writes(str(other))), str(file))
    torch.jit.load(str(file))(torch.zeros(4))
    assert other.exists()


@pytest.mark.parametrize(
    "code", ["x.save('y')", "ops.image.write_file('y', x)", "ops.mine.run(x)", "torch.classes.dist_rpc.X"]
)
def test_torchscript_of_other_operators(tmp_path, code):
    file = packed(tmp_path / "model.pt", {"code/__torch__.py": code.encode(), "constants.pkl": b"", "data.pkl": b""})
    refused(examine_script, file, match="which no network needs")


@pytest.mark.parametrize("examine", [examine_program, examine_script])
def test_an_archive_that_is_none(tmp_path, examine):
    (tmp_path / "a").write_bytes(b"PK\x03\x04 and nothing")
    refused(examine, tmp_path / "a", match="cannot be opened")


def test_onnx_whose_weights_lie_elsewhere(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from facelab.export.to_onnx import start

    (tmp_path / "secret").write_bytes(np.arange(3, dtype=np.float32).tobytes())
    (tmp_path / "in").mkdir()
    for place in ("../secret", str(tmp_path / "secret"), "x/../../secret"):
        weight = onnx.TensorProto(name="w", data_type=1, dims=[3], data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", place), ("offset", "0"), ("length", "12")):
            weight.external_data.add(key=key, value=value)
        made = [onnx.helper.make_tensor_value_info(name, 1, [3]) for name in ("x", "y")]
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", made[:1], made[1:], [weight]
        )
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        (tmp_path / "in" / "model.onnx").write_bytes(model.SerializeToString())
        refused(start, tmp_path / "in" / "model.onnx", 1, match="cannot be opened by ONNX Runtime")


XML = """<?xml version="1.0"?>{head}<net name="x" version="11"><layers>
<layer id="0" name="w" type="Const" version="opset1">
<data element_type="f32" shape="{shape}" offset="{offset}" size="{size}"/>
<output><port id="0" precision="FP32"><dim>4</dim></port></output></layer>
<layer id="1" name="r" type="Result" version="opset1">
<input><port id="0" precision="FP32"><dim>4</dim></port></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/></edges></net>"""


@pytest.mark.parametrize(
    "change",
    [
        {"offset": "1000"},
        {"offset": "-16"},
        {"size": "1000", "shape": "250"},
        {"size": "18446744073709551600"},
        {"shape": "4000000000,4000000000,4"},
        {"head": '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>', "shape": "&a;"},
    ],
)
def test_openvino_whose_weights_lie_outside_of_their_file(tmp_path, change):
    pytest.importorskip("openvino")
    from facelab.export.to_openvino import _read

    (tmp_path / "model.bin").write_bytes(bytes(16))
    sound = {"head": "", "shape": "4", "offset": "0", "size": "16"}
    (tmp_path / "model.xml").write_text(XML.format(**sound))
    assert _read(tmp_path / "model.xml") is not None
    (tmp_path / "model.xml").write_text(XML.format(**{**sound, **change}))
    refused(_read, tmp_path / "model.xml", match="cannot be opened by OpenVINO")


# Data


@pytest.mark.parametrize("offset", [-4, 2**62, 10**30, 4, "0x10"])
@pytest.mark.parametrize("length", [0, 0x1FFFFFFF, 0xFFFFFFFF])
def test_records_that_lie_elsewhere(tmp_path, offset, length):
    (tmp_path / "train.rec").write_bytes(struct.pack("<II", 0xCED7230A, length) + bytes(64))
    (tmp_path / "train.idx").write_text(f"0\t0\n1\t{offset}\n")
    (tmp_path / "property").write_text("2,16,16")
    refused(RecordIOFaces, tmp_path, 16, match=str(tmp_path))


@pytest.mark.parametrize("dims", [(2**31 - 1, 2**31 - 1), (-1, 1), (2**30, 1)])
def test_a_mat_list_that_says_it_is_huge(tmp_path, dims):
    name = b"probe_set"
    flags = struct.pack("<IIII", 6, 8, 1, 0)  # a cell array
    body = flags + struct.pack("<II2i", 5, 8, *dims) + struct.pack("<II", 1, len(name)) + name.ljust(16, b"\0")
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)
    (tmp_path / "a.mat").write_bytes(header + struct.pack("<II", 14, len(body)) + body)
    refused(read_mat, tmp_path / "a.mat", "probe", match="get the file again")


def test_lists_that_name_other_files(tmp_path):
    """A list can have files decoded, wherever they are; of what is no picture nothing is told."""
    secret = tmp_path / "secret_0001.jpg"
    secret.write_text("the content of it")
    faces = tmp_path / "faces"
    (faces / "a").mkdir(parents=True)
    (faces / "list.csv").write_text(f"image,person\n../secret_0001.jpg,a\n{secret},b\n")
    found = read_list(faces, faces / "list.csv", None, [], name="x", size=16, accept_unreadable=False)
    for number in range(2):
        with pytest.raises(ValueError, match="is not a readable image") as refusal:
            found.load(number)
        assert "the content" not in str(refusal.value)
    (faces / "pairs.txt").write_text("2\n../secret\t1\t2\n../../etc/passwd\t1\t2\n../secret 1 ../x 1\na 1 b 1\n")
    with pytest.raises(FileNotFoundError, match=r"people that pairs\.txt names"):
        read_folder(faces, faces / "pairs.txt", "x", 2, 16)


# The house


FORBIDDEN = {"eval", "exec", "extractall", "extract", "_import_module", "load_module", "system", "popen"}
PROGRAMS = {"to_exported_program.py": "torch.export.load", "to_torchscript.py": "torch.jit.load"}  # examined before


@pytest.mark.parametrize("file", sorted(FACELAB.rglob("*.py")), ids=lambda file: str(file.relative_to(FACELAB)))
def test_nobody_here_runs_what_is_in_a_file(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, name = called.rpartition(".")
        words = {f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords}
        where = f"{file.name}:{node.lineno}: {called}"
        assert name not in FORBIDDEN or (name == "eval" and owner), where  # network.eval()
        assert called not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "torch.hub.load"), where
        if called in ("torch.load", "np.load"):
            assert words & {"weights_only=True", "allow_pickle=False"}, where
        if called in ("torch.export.load", "torch.jit.load"):
            assert PROGRAMS.get(file.name) == called, where
        if called == "yaml.load":
            assert any("SafeLoader" in word for word in words), where
        assert called not in ("yaml.unsafe_load", "yaml.full_load", "OmegaConf.resolve"), where
