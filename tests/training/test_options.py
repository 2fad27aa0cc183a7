"""The trainer group says what is wrong with it before anything starts."""

import builtins
import io
import re

import pytest
import torch

from facelab.training import options
from facelab.training.options import EvaluationOptions, TrainerOptions, check_kinds

GOOD = {
    "epochs": 2,
    "max_steps": None,
    "batch_size": 12,
    "accumulate": 1,
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "precision": "fp32",
    "compile": False,
    "checkpointing": False,
    "deterministic": False,
    "validate_every": 1.0,
    "save_every_steps": None,
    "save_every_minutes": 10,
    "save_in_background": True,
    "log_every": 10,
    "progress": True,
    "ema": None,
    "sync_batchnorm": False,
}


def made(**changes):
    return TrainerOptions(**{**GOOD, **changes})


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that so many GPUs are here."""

    def pretend(count, bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)

    return pretend


@pytest.mark.parametrize("name", ["epochs", "batch_size", "accumulate", "devices", "num_nodes", "log_every"])
@pytest.mark.parametrize("value", [0, -3])
def test_counts_are_above_zero(name, value):
    with pytest.raises(ValueError, match=rf"trainer\.{name} is {value}: give a number above 0$"):
        made(**{name: value})


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), float("inf")])
def test_validations_come_at_a_number_of_epochs(value):
    with pytest.raises(ValueError, match=rf"trainer\.validate_every is {value}: give a number above 0"):
        made(validate_every=value)


@pytest.mark.parametrize("name", ["max_steps", "save_every_steps", "save_every_minutes"])
def test_what_may_be_null_is_null_or_above_zero(name):
    assert getattr(made(**{name: None}), name) is None
    assert getattr(made(**{name: 3}), name) == 3
    with pytest.raises(ValueError, match=rf"trainer\.{name} is 0: give a number above 0, or null for none"):
        made(**{name: 0})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("epochs", "ten", "int"),
        ("epochs", 1.5, "int"),
        ("epochs", True, "int"),
        ("epochs", None, "int"),
        ("devices", "auto", "int"),
        ("max_steps", "x", "int or null"),
        ("max_steps", False, "int or null"),
        ("save_every_minutes", "10", "float or null"),
        ("validate_every", None, "float"),
        ("validate_every", True, "float"),
        ("precision", 16, "str"),
        ("compile", "yes", "bool"),
        ("deterministic", 1, "bool"),
        ("progress", None, "bool"),
        ("ema", "slow", "float or null"),
    ],
)
def test_kinds_are_told(name, value, kind):
    with pytest.raises(ValueError, match=rf"^trainer\.{name} is {value!r}: give a value of type {kind}$"):
        made(**{name: value})


def test_a_whole_number_stands_for_a_float():
    assert made(validate_every=2).validate_every == 2
    assert made(save_every_minutes=0.5).save_every_minutes == 0.5


def test_words_are_listed():
    with pytest.raises(ValueError, match=r"trainer\.precision is 'fp16': give one of auto, bf16, fp32"):
        made(precision="fp16")
    with pytest.raises(ValueError, match=r"trainer\.accelerator is 'tpu': give one of auto, cpu, gpu"):
        made(accelerator="tpu")


def test_every_process_has_as_many_images():
    assert made(batch_size=12, devices=2, num_nodes=3).world == 6
    with pytest.raises(ValueError, match=r"batch_size is 12, which 5 processes cannot share .* a multiple of 5"):
        made(batch_size=12, devices=5)


def test_parts_are_not_empty():
    assert made(batch_size=12, devices=2, accumulate=6).accumulate == 6
    with pytest.raises(ValueError, match=r"trainer\.accumulate is 7, but a rank has only 6 images a step"):
        made(batch_size=12, devices=2, accumulate=7)


def test_a_gpu_that_is_not_there(gpus):
    gpus(0)
    with pytest.raises(ValueError, match=r"trainer\.accelerator=gpu asks for CUDA, .* use trainer\.accelerator=cpu"):
        made(accelerator="gpu")
    assert not made(accelerator="auto").on_gpu
    assert made(accelerator="auto", devices=4).world == 4  # on the CPU there may be as many as one likes


def test_more_gpus_than_there_are(gpus):
    gpus(2)
    assert made(accelerator="gpu", devices=2).on_gpu
    for accelerator in ("gpu", "auto"):
        with pytest.raises(ValueError, match=r"trainer\.devices is 3, but there are 2 GPUs here"):
            made(accelerator=accelerator, devices=3)
    assert not made(accelerator="cpu", devices=3).on_gpu


@pytest.mark.parametrize(
    ("accelerator", "precision", "native", "expected"),
    [
        ("cpu", "auto", True, "bf16-mixed"),
        ("cpu", "auto", False, "32-true"),
        ("cpu", "bf16", False, "bf16-mixed"),
        ("cpu", "fp32", True, "32-true"),
        ("gpu", "auto", True, "bf16-mixed"),
        ("gpu", "auto", False, "32-true"),
        ("gpu", "bf16", False, "bf16-mixed"),
        ("gpu", "fp32", True, "32-true"),
    ],
)
def test_auto_takes_bf16_where_the_hardware_has_it(gpus, monkeypatch, accelerator, precision, native, expected):
    gpus(1, bf16=native if accelerator == "gpu" else not native)
    monkeypatch.setattr(options, "_cpu_multiplies_bf16", lambda: native if accelerator == "cpu" else not native)
    assert made(accelerator=accelerator, precision=precision).lightning_precision == expected


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", "fma avx512_bf16 sse", True),
        ("GenuineIntel", "avx512_bf16 amx_bf16", True),
        ("GenuineIntel", "avx512_bf16", False),
        ("AuthenticAMD", "avx2 avx512f", False),
        (None, None, False),
    ],
)
def test_the_processors_word_on_bf16(monkeypatch, vendor, flags, expected):
    def opened(name):
        assert name == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError(name)  # not Linux
        return io.StringIO(f"vendor_id : {vendor}\nflags : {flags}\n")

    monkeypatch.setattr(builtins, "open", opened)
    assert options._cpu_multiplies_bf16() is expected


@pytest.mark.parametrize("value", [0, 1, -0.5, 2.0, float("nan")])
def test_an_average_decays(value):
    assert made(ema=0.999).ema == 0.999
    with pytest.raises(ValueError, match=rf"trainer\.ema is {value}: give a decay between 0 and 1"):
        made(ema=value)


def evaluation(**changes):
    given = {"batch_size": 8, "accelerator": "cpu", "precision": "fp32", "progress": True}
    return EvaluationOptions(**{**given, **changes})


def test_what_is_computed_again_is_decided_once():
    assert made(checkpointing=True).checkpointing
    with pytest.raises(ValueError, match=r"^trainer\.checkpointing=true with trainer\.compile=true: torch\.compile"):
        made(checkpointing=True, compile=True)


def test_an_evaluation_has_the_same_words(gpus, monkeypatch):
    gpus(0)
    assert not evaluation().on_gpu
    assert not evaluation().in_bf16
    assert evaluation(precision="bf16").in_bf16
    monkeypatch.setattr(options, "_cpu_multiplies_bf16", lambda: True)
    assert evaluation(precision="auto").in_bf16
    for changes, line in (
        ({"batch_size": 0}, "batch_size is 0: give a number above 0"),
        ({"batch_size": "x"}, "batch_size is 'x': give a value of type int"),
        ({"precision": "half"}, "precision is 'half': give one of auto, bf16, fp32"),
        ({"accelerator": "gpu"}, "accelerator=gpu asks for CUDA, and torch sees no GPU here: use accelerator=cpu"),
    ):
        with pytest.raises(ValueError, match=f"^{line}"):
            evaluation(**changes)


# Any constructor's arguments


LOSS = {"_target_": "facelab.loss.arcface.ArcFace", "scale": 64, "margin": 0.5}
SUM = {"_target_": "facelab.loss.sum.Sum", "parts": {"a": LOSS}, "weights": {"a": 1}}
NETWORK = {"_target_": "facelab.backbone.iresnet.IResNet", "layers": [1, 1, 1, 1], "embedding_size": 8}


@pytest.mark.parametrize(
    ("node", "line"),
    [
        ({**LOSS, "scale": "abc"}, "group.scale is 'abc': give a value of type float"),
        ({**LOSS, "margin": None}, "group.margin is None: give a value of type float"),
        ({**LOSS, "margin": True}, "group.margin is True: give a value of type float"),
        ({**NETWORK, "layers": 4}, "group.layers is 4: give a value of type list of int"),
        ({**NETWORK, "layers": [1, "x"]}, "group.layers is [1, 'x']: give a value of type list of int"),
        ({**NETWORK, "embedding_size": 1.5}, "group.embedding_size is 1.5: give a value of type int"),
        ({**SUM, "parts": {"a": {**LOSS, "scale": "abc"}}}, "group.parts.a.scale is 'abc': give a value of type float"),
        ({**SUM, "weights": {"a": "much"}}, "group.weights.a is 'much': give a value of type float"),
        ({"inner": {**LOSS, "scale": "abc"}}, "group.inner.scale is 'abc': give a value of type float"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_by_its_key(node, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        check_kinds({"group": node})


@pytest.mark.parametrize(
    "node",
    [
        LOSS,
        SUM,
        {**LOSS, "margin": 1},
        NETWORK,
        {"_target_": "torch.nn.Identity", "anything": "goes"},
        {"_target_": "facelab.nowhere.Nothing", "scale": "abc"},
        {"_target_": 3, "scale": "abc"},
        {"scale": "abc"},
    ],
)
def test_what_fits_or_cannot_be_told_is_left_to_the_constructor(node):
    check_kinds({"group": node, "seed": "one"})
