"""MXNet graphs without MXNet: the published MobileFaceNet's nodes, and a float64 interpreter of them.

Nodes are what stands in a `.graph.jsonl`: {"op", "name", "inputs", "attrs"}. Nothing here knows facelab's networks.
"""

import ast

import numpy as np
import torch
import torch.nn.functional as F

# hidden channels, channels, stride of the bottlenecks; a `dconv` has no shortcut
ROWS = [
    ("dconv_23", 128, 64, 2),
    *((f"res_3_block{i}", 128, 64, 1) for i in range(4)),
    ("dconv_34", 256, 128, 2),
    *((f"res_4_block{i}", 256, 128, 1) for i in range(6)),
    ("dconv_45", 512, 128, 2),
    *((f"res_5_block{i}", 256, 128, 1) for i in range(2)),
]


def published_nodes():
    """The graph of mobilefacenet_y1, node by node in its order."""
    nodes, at, shortcuts = [], "data", 0

    def add(op, name, more=(), **attrs):
        nonlocal at
        node = {"op": op, "name": name, "inputs": [at, *(f"{name}_{part}" for part in more)]}
        nodes.append({**node, "attrs": attrs} if attrs else node)
        at = name

    def conv(name, filters, kernel, stride=1, groups=1, linear=False, pad=0):
        sizes = {"kernel": f"({kernel}, {kernel})", "pad": f"({pad}, {pad})", "stride": f"({stride}, {stride})"}
        counts = {"num_filter": str(filters), "num_group": str(groups), "no_bias": "True"}
        add("Convolution", f"{name}_conv2d", ["weight"], **sizes, **counts)
        norm = ["gamma", "beta", "moving_mean", "moving_var"]
        add("BatchNorm", f"{name}_batchnorm", norm, fix_gamma="False", momentum="0.9")
        if not linear:
            add("LeakyReLU", f"{name}_relu", ["gamma"], act_type="prelu")

    add("_minus_scalar", "_minusscalar0", scalar="127.5")
    add("_mul_scalar", "_mulscalar0", scalar="0.0078125")
    conv("conv_1", 64, 3, stride=2, pad=1)
    conv("conv_2_dw", 64, 3, groups=64, pad=1)
    for name, hidden, channels, stride in ROWS:
        before = at
        conv(f"{name}_conv_sep", hidden, 1)
        conv(f"{name}_conv_dw", hidden, 3, stride, groups=hidden, pad=1)
        conv(f"{name}_conv_proj", channels, 1, linear=True)
        if stride == 1:
            nodes.append({"op": "elemwise_add", "name": f"_plus{shortcuts}", "inputs": [at, before]})
            at = f"_plus{shortcuts}"
            shortcuts += 1
    conv("conv_6sep", 512, 1)
    conv("conv_6dw7_7", 512, 7, groups=512, linear=True)
    nodes.append(
        {
            "op": "FullyConnected",
            "name": "pre_fc1",
            "inputs": [at, "fc1_weight", "pre_fc1_bias"],
            "attrs": {"num_hidden": "128"},
        }
    )
    at = "pre_fc1"
    norm = ["gamma", "beta", "moving_mean", "moving_var"]
    add("BatchNorm", "fc1", norm, eps="2e-05", fix_gamma="True", momentum="0.9")
    return nodes


def random_arrays(nodes, seed):
    """Arrays that a graph can run with, under the names that MXNet saves: arg: what is trained, aux: statistics."""
    generator, arrays, channels = np.random.default_rng(seed), {}, {"data": 3}

    def put(name, *shape, low, high):
        prefix = "aux" if "moving" in name else "arg"
        arrays[f"{prefix}:{name}"] = generator.uniform(low, high, shape).astype(np.float32)

    for node in nodes:
        attrs, names = node.get("attrs", {}), node["inputs"]
        width = channels[names[0]]
        if node["op"] == "Convolution":
            kernel, groups = ast.literal_eval(attrs["kernel"]), int(attrs["num_group"])
            bound = (3 * groups / (width * kernel[0] * kernel[1])) ** 0.5
            put(names[1], int(attrs["num_filter"]), width // groups, *kernel, low=-bound, high=bound)
            width = int(attrs["num_filter"])
        elif node["op"] == "FullyConnected":
            put(names[1], int(attrs["num_hidden"]), width, low=-0.1, high=0.1)
            width = int(attrs["num_hidden"])
            put(names[2], width, low=-0.5, high=0.5)
        elif node["op"] == "BatchNorm":
            for name, (low, high) in zip(names[1:], [(0.5, 1.5), (-0.5, 0.5), (-0.5, 0.5), (0.5, 1.5)], strict=True):
                put(name, width, low=low, high=high)
        elif node["op"] == "LeakyReLU":
            put(names[1], width, low=-0.5, high=0.5)
        channels[node["name"]] = width
    return arrays


def run(nodes, arrays, images):
    """The last node's value in float64.

    Args:
        nodes: in an order in which every input stands before its use.
        arrays: name with `arg:` or `aux:` → array.
        images: (B,3,H,W), pixel values 0…255.
    """
    values = {name.split(":", 1)[1]: torch.from_numpy(array).double() for name, array in arrays.items()}
    values["data"] = images.double()
    for node in nodes:
        x, *more = (values[name] for name in node["inputs"])
        values[node["name"]] = OPERATIONS[node["op"]](x, more, node.get("attrs", {}))
    return values[nodes[-1]["name"]]


def _convolution(x, more, attrs):
    sizes = {ours: ast.literal_eval(attrs[theirs]) for ours, theirs in (("stride", "stride"), ("padding", "pad"))}
    assert attrs["no_bias"] == "True"
    return F.conv2d(x, *more, groups=int(attrs["num_group"]), **sizes)


def _norm(x, more, attrs):
    # MXNet's defaults: eps 1e-3, and a gain of 1 whatever is stored
    gamma, beta, mean, variance = (array.view(1, -1, *[1] * (x.dim() - 2)) for array in more)
    if attrs.get("fix_gamma", "True") == "True":
        gamma = torch.ones_like(gamma)
    return (x - mean) / (variance + float(attrs.get("eps", 1e-3))).sqrt() * gamma + beta


def _prelu(x, more, attrs):
    assert attrs["act_type"] == "prelu"
    return torch.where(x > 0, x, x * more[0].view(1, -1, 1, 1))


OPERATIONS = {
    "_minus_scalar": lambda x, more, attrs: x - float(attrs["scalar"]),
    "_mul_scalar": lambda x, more, attrs: x * float(attrs["scalar"]),
    "Convolution": _convolution,
    "BatchNorm": _norm,
    "LeakyReLU": _prelu,
    "elemwise_add": lambda x, more, attrs: x + more[0],
    "FullyConnected": lambda x, more, attrs: x.flatten(1) @ more[0].T + more[1],
}
