"""One run, from its configuration to its report."""

import logging
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from torch import nn

from facelab.backbone.complexity import count_parameters
from facelab.backbone.weights import Input, set_input
from facelab.benchmark.scores import save_all
from facelab.data.albumentation import Albumentations
from facelab.data.inspect import Inspection
from facelab.loss.base import Loss
from facelab.report import run as report
from facelab.training import centres, determinism, launching
from facelab.training.checkpoint import Progress
from facelab.training.choices import choices
from facelab.training.closed_set import check_classes
from facelab.training.company import Company
from facelab.training.datamodule import FaceData
from facelab.training.extending import Extension, extend
from facelab.training.feedback import about_sampler, check_feedback
from facelab.training.finite import Agreed, Diverged
from facelab.training.groups import GroupSheet
from facelab.training.inspection import FILE, look_at_images, record_of_images
from facelab.training.keeper import Keeper, Recorder, kept_so_far
from facelab.training.logging import Copy, tags_of
from facelab.training.module import FaceModule
from facelab.training.network import build_backbone, check_learning, convention
from facelab.training.objective import build_loss, class_weights
from facelab.training.options import TrainerOptions, check_kinds
from facelab.training.preemption import Interrupted, StopRequest
from facelab.training.progress import Display, console, show_choices, show_result
from facelab.training.record import History, RunDirectory
from facelab.training.stored import Start, choose
from facelab.training.strategy import keep_memory, launched_rank, peak_memory, strategy
from facelab.training.teaching import Teaching, taught

# What a data group says beside the data set itself.
COMMON = ("known", "inspect", "holdout", "report", "take", "augment", "degrade", "sampler", "albumentations", "loader")


@dataclass
class Run:
    """The parts of a run, built and checked, before anything has been trained."""

    config: Any  # DictConfig, for instantiation
    plain: dict[str, Any]  # the same, resolved, as plain values
    options: TrainerOptions
    progress: Progress
    data: FaceData
    module: FaceModule
    network: Any  # the backbone's shapes, without values
    head: nn.Module  # the same of the head
    directory: RunDirectory
    start: Start | None  # the checkpoint that it goes on from
    longer: Extension | None  # where it is to have more steps than before
    found: Inspection  # what is wrong with the images
    sampling: dict[str, str]  # what is to be said of the sampler
    teaching: Teaching | None  # who teaches


def train(config: Any, plain: dict[str, Any], where: Path, one_process: bool) -> dict[str, float]:
    """Trains, validates, keeps, reports.

    Args:
        config: the composed configuration.
        plain: the same, resolved, as plain dicts, lists and scalars.
        where: the run directory.
        one_process: whether this is a job of a multirun without a launcher for several processes.

    Returns:
        The final numbers, as in metrics.json.

    Raises:
        ValueError, FileNotFoundError: something in the configuration or its files is wrong; said before training.
        Interrupted: a signal asked the run to stop; it has saved its checkpoint.
        QueuedAgain: the same in a job of submitit, which comes back.
    """
    quiet()
    check_kinds(plain)
    options = instantiate(config.trainer)
    determinism.prepare(options.deterministic)
    if not options.on_gpu:
        keep_memory()
    if one_process and options.world > 1:
        raise ValueError(
            f"trainer.devices × trainer.num_nodes is {options.world}, and in a multirun every further process would "
            "start a multirun of its own: use hydra/launcher=local or slurm, or run point by point"
        )
    launching.meet(options)
    writes = launched_rank() == 0
    stop = StopRequest()
    try:
        extends = plain.get("resume") is not None
        with closing(RunDirectory(where, plain, writes, extends)) as directory:
            if directory.finished and not directory.extended:
                return show_finished(directory, "This run is finished; nothing was trained.")
            run = _build(config, plain, options, directory)
            return _train(run, stop, writes)
    except Interrupted as error:
        stop.queue_again(str(error))  # with everything saved and closed, W&B included
        raise


def _benchmark(config: Any) -> Any:
    """What a training is measured by; refuses what asks for a checkpoint."""
    benchmark = instantiate(config.benchmark)
    if getattr(benchmark, "evaluates_only", False):
        raise ValueError(
            f"benchmark: {type(benchmark).__name__} measures checkpoints: train with another one, then python -m "
            "facelab.evaluate checkpoint=… benchmark=…"
        )
    if getattr(benchmark, "compares_groups", False):
        raise ValueError(
            f"benchmark.groups.beta is {benchmark.beta:g}: group-aware similarity is measured of a checkpoint, by "
            "python -m facelab.evaluate checkpoint=… benchmark.groups.beta=0.1; leave it at 0 here"
        )
    return benchmark


def _shapes(config: Any, meta: Any, options: TrainerOptions) -> tuple[Any, nn.Module, Loss]:
    """Backbone, head and loss of shapes alone, which costs nothing.

    What cannot be built is refused now, before the folder belongs to this run.
    """
    with torch.device("meta"):
        network = _backbone(config, meta)
        head = instantiate(config.head, embedding_size=network.embedding_size)
        loss = build_loss(config.loss, network.embedding_size, num_classes=max(2, options.world), load=False)
    if options.sync_batchnorm:
        from facelab.backbone.synchronised import synchronise  # timm comes with it: a second or two

        synchronise(network, head)  # which may refuse it
    return network, head, loss


def _build(config: Any, plain: dict[str, Any], options: TrainerOptions, directory: RunDirectory) -> Run:
    if type(config.seed) is not int or config.seed < 0:
        raise ValueError(f"seed is {config.seed!r}: give a whole number from 0 on")
    start = choose(directory.last, directory.previous)
    meta = None if start is None else start.meta
    progress = Progress() if meta is None else Progress(**meta["progress"])
    loader = instantiate(config.data.loader)  # first, since it may not be installed
    source = instantiate({key: value for key, value in config.data.items() if key not in COMMON})
    augment, degrade = instantiate(config.data.augment), instantiate(config.data.degrade)
    degrade.check(source.size)
    benchmark = _benchmark(config)
    recipe = instantiate(config.optimizer)
    data = FaceData(
        source,
        plain["data"]["holdout"],
        plain["data"]["take"],
        loader,
        benchmark,
        options,
        config.seed,
        augment.draws + degrade.draws,
        progress,
        None if config.data.albumentations is None else Albumentations(plain["data"]["albumentations"]),
        instantiate(config.data.sampler, _partial_=True),
        None if config.data.report is None else instantiate(config.data.report),
    )

    network, head, loss = _shapes(config, meta, options)
    check_learning(network, head, loss, recipe, options)
    check_classes(benchmark, loss)
    check_feedback(data.plan, config.loss, network.embedding_size)
    found = look_at_images(source, plain["data"]["inspect"], loader.threads, directory, options.progress)
    if not found.kept.all():
        data.divide(found.kept)
    data.look()
    longer = extend(directory, data, progress, recipe)
    centres_of = class_weights(config.loss)
    if centres_of is not None and meta is None:
        centres.check(centres_of, loss, data.num_classes)
    teaching = taught(config.distill, network, loss, source.size, data.num_classes, options.on_gpu, meta)
    loss_node = config.loss if teaching is None else teaching.inherited(config.loss)

    def build() -> tuple[nn.Module, nn.Module, Loss, nn.Module | None]:
        backbone = _backbone(config, meta)
        head = instantiate(config.head, embedding_size=backbone.embedding_size)
        loss = build_loss(loss_node, backbone.embedding_size, data.num_classes, load=meta is None)
        return backbone, head, loss, None if teaching is None else teaching.begin(loss, data.num_classes)

    fresh = config.backbone.weights is None
    lesson = None if teaching is None else teaching.lesson
    module = FaceModule(build, augment, degrade, recipe, benchmark, data, progress, config.seed, fresh, lesson)
    sampling = about_sampler(data.plan, data.labels, loss, options.accumulate)
    built = (progress, data, module, network, head)
    return Run(config, plain, options, *built, directory, start, longer, found, sampling, teaching)


def _backbone(config: Any, meta: Mapping[str, Any] | None) -> Any:
    """The network; a resumed run asks its own checkpoint for the input convention, and no file of weights."""
    network = build_backbone(config.backbone, load=meta is None)
    if meta is not None:
        set_input(network, Input(**meta["input"]))
    return network


def _train(run: Run, stop: StopRequest, writes: bool) -> dict[str, float]:
    plain, progress, directory = run.plain, run.progress, run.directory
    copy, history = Copy(None), None
    try:
        if writes:
            copy.logger = _logger(run)  # may refuse its options: only then does the folder belong to this run
            if hasattr(run.data.source, "encoded"):
                run.found.write(directory.path / FILE)  # before config.yaml: who resumes finds it
            directory.start(plain)
            resumed = -1 if run.start is None else progress.step
            history = History(directory.path / "metrics.csv", resumed, progress.validated)
            images = record_of_images(run.data.source, plain["data"]["known"], run.found, run.data.taken)
            directory.describe(plain["seed"], {"wandb": copy.version, "data": images})
            directory.note(processes=run.options.world, images_per_process=run.options.share)
            _tell(run)
            show_choices({**choices(run), **copy.about}, str(directory.path))
            copy.follow(history.path)
        with stop, Company(partial(kept_so_far, directory)) as company:
            keeper = _keeper(run, stop)
            recorder = Recorder(history, copy, run.options.log_every)
            display = Display(run.options.progress and writes)
            callbacks = [recorder, keeper, display, GroupSheet(directory.path if writes else None)]
            trainer = _trainer(run, callbacks, company)
            try:
                _fit(run, trainer)
                if writes:
                    print(f"scoring {run.data.report.name} …", flush=True)
                trainer.test(run.module, datamodule=run.data, verbose=False)
            finally:
                keeper.writer.close()  # after an error too, what is on its way becomes a whole checkpoint
        if not writes:
            return {}
        result = run.module.result
        metrics = _final(run, keeper.reported, result)
        save_all(directory.path / "scores", result)
        directory.note(peak_memory=peak_memory(run.options.on_gpu))
        directory.finish(metrics)
        report.draw(directory.path)
        copy.publish(metrics, directory.path)
        show_result(metrics, result.all_notes(), str(directory.path))
        return metrics
    except Diverged as error:
        raise Agreed(f"{error}. {_way_on(run)}") from error
    except RuntimeError as error:
        if (refused := determinism.refused(error)) is None:
            raise
        raise Agreed(refused) from error
    except KeyboardInterrupt:  # before the signals are ours, or after
        if not (directory.path / "config.yaml").is_file():
            raise
        raise Interrupted(f"interrupted; the same command, started again, goes on in {directory.path}") from None
    finally:
        if history is not None:
            history.close()
        copy.finish()


def _tell(run: Run) -> None:
    """Says, and records, that the run does not simply go on: what is damaged, what is longer."""
    if run.start is not None and run.start.told:
        print(f"facelab: {run.start.told}", flush=True)
        run.directory.note(damaged=run.start.told)
    if run.longer is not None:
        print(f"facelab: {run.longer.words}", flush=True)
        run.directory.extend(run.longer.facts)


def _fit(run: Run, trainer: pl.Trainer) -> None:
    """From where the run stands to its last step."""
    module, progress, data = run.module, run.progress, run.data
    trainer.strategy.connect(module)
    if progress.validated < progress.step and data.validates_at(progress.step) and data.selection is not None:
        # The untrained network's accuracy is the first point of the curve; or a validation was given up by a signal.
        trainer.validate(module, datamodule=data, verbose=False)
    if data.segments_left:
        trainer.fit_loop.max_epochs = data.segments_left
        trainer.fit(module, datamodule=data)


def _way_on(run: Run) -> str:
    """What to do when the numbers have run away."""
    start = choose(run.directory.last, run.directory.previous)
    if start is None:
        return "Nothing was saved before: lower optimizer.lr, or lengthen optimizer.schedule.warmup_epochs"
    keys = ["backbone.weights", *(["loss.classifier.weights"] if run.module.sharded else [])]
    # Twice in quotes, for the shell and for Hydra: a job's name has commas and signs of equality.
    weights = " ".join(f"\"{key}='{start.path}'\"" for key in keys)
    return (
        f"The last good checkpoint is {start.path}, of step {start.meta['step']:,}; the same command goes on "
        "from there, most likely to the same end. To go on otherwise (with a lower optimizer.lr, a longer "
        "optimizer.schedule.warmup_epochs, a smaller optimizer.clip_norm or trainer.precision=fp32) is another run: "
        f"add to the command that change and {weights} job=a_new_name"
    )


def _keeper(run: Run, stop: StopRequest) -> Keeper:
    meta = {"config": run.plain, "num_classes": run.data.num_classes, "input": convention(run.network)}
    if run.data.closed:
        meta["closed_set"] = True  # images were held out, not identities
    if run.teaching is not None:
        meta["teacher_sha256"] = run.teaching.digest
    options = run.options
    every = (options.save_every_steps, options.save_every_minutes)
    return Keeper(run.directory, stop, meta, *every, run.start, options.save_in_background)


def _trainer(run: Run, callbacks: list[pl.Callback], company: Company) -> pl.Trainer:
    options = run.options
    if options.on_gpu:
        torch.backends.cudnn.benchmark = not options.deterministic
        torch.set_float32_matmul_precision("high")
        torch.cuda.reset_peak_memory_stats()  # another job of a multirun may have been here
    return pl.Trainer(
        accelerator="gpu" if options.on_gpu else "cpu",
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy(options.world, company),
        plugins=launching.plugins(),
        precision=options.lightning_precision,  # type: ignore[arg-type]
        deterministic=options.deterministic,
        callbacks=callbacks,
        logger=False,  # our own Recorder writes, and outlives a W&B that fails
        max_epochs=1,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _logger(run: Run) -> Any:
    plain = run.plain
    return instantiate(run.config.logger, _partial_=True)(
        run=run.directory.path,
        config=plain,
        group=plain["name"],
        job=plain["job"],
        job_type="train",
        tags=tags_of(plain),
    )


def _final(run: Run, reported: Mapping[str, Any], result: Any) -> dict[str, float]:
    progress, best = run.progress, reported["progress"]["best"]  # as measured of that checkpoint
    return {
        **result.all_metrics(),
        **best,
        "best_step": reported["step"],
        "steps": progress.step,
        "images": progress.images,
        "seconds": round(progress.seconds, 1),
        "images_per_s": round(progress.images / max(progress.seconds, 1e-9), 1),
        "parameters": count_parameters(run.module.backbone) + count_parameters(run.module.head),
        "identities": run.data.num_classes,
    }


def show_finished(directory: RunDirectory, words: str) -> dict[str, float]:
    """What is told of a run directory that has its result already."""
    metrics = directory.metrics()
    if directory.writes:
        if not (directory.path / "report.png").is_file():
            report.draw(directory.path)
        console().print(f"{words} Delete its folder to run it again.\n")
        show_result(metrics, {}, str(directory.path))
    return metrics


def quiet() -> None:
    """Lightning's remarks that do not hold here: the loaders are our own, and so are the checkpoints."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", module="lightning_fabric")
