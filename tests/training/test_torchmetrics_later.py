"""torchmetrics at a start: two names of it, and all of it to whoever asks."""

import subprocess
import sys

SAY = "import sys; import facelab.training; "


def told(code):
    """What a fresh process prints."""
    done = subprocess.run([sys.executable, "-c", SAY + code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_start_leaves_out_what_lightning_does_not_need():
    heavy = ("scipy.signal", "torchvision", "torchmetrics.functional.audio", "torchmetrics.detection")
    assert told(f"import facelab.training.fit; print([n for n in {heavy} if n in sys.modules])") == ["[]"]


def test_all_of_it_is_there_for_whoever_asks_and_lightning_knows_its_metrics():
    lines = told(
        "import pytorch_lightning as pl, torch, torchmetrics; first = torchmetrics.Metric;"
        "print('torchmetrics.detection' in sys.modules);"
        "from torchmetrics import MeanMetric, functional;"
        "from torchmetrics.classification import BinaryAUROC;"
        "print('torchmetrics.detection' in sys.modules, torchmetrics.Metric is first);"
        "from pytorch_lightning.core.module import Metric;"
        "print(issubclass(BinaryAUROC, Metric), isinstance(MeanMetric(), Metric), Metric is first);"
        "auroc = BinaryAUROC(); auroc.update(torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.tensor([0, 1, 0, 1]));"
        "print(float(auroc.compute()));"
        "print(hasattr(torchmetrics, 'no_such_metric'))"
    )
    assert lines == ["False", "True True", "True True True", "0.75", "False"]


def test_a_submodule_asked_for_first_is_found():
    assert told("from torchmetrics.aggregation import MeanMetric; print(float(MeanMetric()(3.0)))") == ["3.0"]


def test_a_release_that_keeps_the_names_elsewhere_is_loaded_whole():
    lines = told(
        "from facelab.training import torchmetrics_later as later;"
        "later.NAMES = {'Metric': 'torchmetrics.metric', 'Elsewhere': 'torchmetrics.metric'};"
        "import torchmetrics; print('__getattr__' in vars(torchmetrics), 'torchmetrics.detection' in sys.modules);"
        "import pytorch_lightning.core.module as m; print(m.Metric is torchmetrics.Metric)"
    )
    assert lines == ["False True", "True"]
