"""Weights & Biases: one run for one job for ever, online with a key, offline without one."""

import hashlib
import json
import logging
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from facelab.training.exhibit import Exhibit
from facelab.training.logging import Row
from facelab.training.wandb_files import folders_of, last_step, remove_unsent

log = logging.getLogger(__name__)

MODES = ("auto", "online", "offline", "disabled")
STEP = "trainer/global_step"  # the x axis of everything
PATIENCE = 10  # seconds for W&B's server to take a connection; W&B itself waits for minutes
LAST_WORDS = 60  # seconds that a run which has ended waits for W&B to take the rest
LOOK_EVERY = 600  # seconds after which is asked again whether the server is still there
LONGEST_NAME, LONGEST_TAG = 128, 64  # characters that W&B takes


class WandbRun:
    """A run's copy at W&B. It holds a row for each step of metrics.csv, once, however often the run was interrupted.

    What W&B is sent cannot be taken back: `wandb sync` appends a folder's rows to those that are there. So a resumed
    run, which is handed all rows that its metrics.csv has kept, sends those that come behind the last one of its
    earlier starts: online the server says which that is, offline their folders do. What was trained again after a kill
    is there already, with the same numbers.

    In W&B's summary `val/…` are those of the best checkpoint, as in metrics.json: a column `val/accuracy` can be sorted
    by while some runs have ended and others have not. (W&B's own best would be `val/accuracy.max`, each number's of
    another step.)

    Args:
        project: W&B project.
        entity: user or team; None is the key's own.
        mode: auto (online with a key and a server that answers, else offline), online, offline or disabled.
        run: the run directory; W&B writes into its folder wandb/.
        config: the resolved configuration, a tree.
        group: the sweep's or experiment's name.
        job: what differs from the defaults.
        job_type: train, evaluate, …
        tags: words to filter by.

    Raises:
        ValueError: where `mode` is none of these, its server does not answer to `online`, or W&B cannot be started.
    """

    name = "W&B"

    def __init__(
        self,
        project: str,
        entity: str | None,
        mode: str,
        run: Path,
        config: Mapping[str, Any],
        group: str,
        job: str,
        job_type: str,
        tags: Sequence[str],
    ):
        if mode not in MODES:
            raise ValueError(f"logger.mode is {mode!r}: give one of {', '.join(MODES)}")
        import wandb

        self.folder = run
        self.identity: str | None = _identity(run, group, job)
        self.mode = _reachable_mode(mode)
        earlier = folders_of(run, self.identity)
        try:
            self._run = wandb.init(
                project=project,
                entity=entity,
                id=self.identity,
                resume="allow",
                name=job[:LONGEST_NAME],
                group=group[:LONGEST_NAME],
                job_type=job_type,
                tags=sorted({tag[:LONGEST_TAG] for tag in tags if tag}),
                config=dict(config),
                dir=run,
                settings=_settings(self.mode),
            )
        except (wandb.errors.Error, OSError) as error:
            raise ValueError(
                f"W&B cannot be started ({error}): set logger.mode=offline and sync later, or logger=csv for "
                "metrics.csv alone"
            ) from None
        self._first = self._run.starting_step if self.mode == "online" else 1 + max(map(last_step, earlier), default=-1)
        if self.mode == "online":  # what waits there was never sent, and comes now
            remove_unsent(earlier)
        self._step, self._row = 0, dict[str, Any]()  # of metrics.csv, not yet with W&B
        self._defined = set[str]()
        self._best = (-math.inf, -math.inf)
        self._looked, self._gone = time.monotonic(), False  # whether it was told that the server does not answer
        self._unsent = False  # whether something is left that W&B has not got
        self._run.define_metric(STEP, hidden=True)

    @property
    def where(self) -> str:
        """Where it is to be seen, or how it gets there."""
        if self.mode == "disabled":
            return "disabled"
        return self._run.url or f"wandb sync '{Path(self._run.dir).parent}'"

    def follow(self, rows: Sequence[Row]) -> None:
        """Rows that metrics.csv has already."""
        for row in rows:
            self.log(row, int(row["step"]))

    def log(self, values: Row, step: int) -> None:
        """A row; it goes to W&B when a later step comes, together with the validation of the same step."""
        if step != self._step:
            self._send()
        self._step = step
        self._row.update(values)
        if any(key.startswith("val/") for key in values):
            self._keep_best(values)
        self._look()

    def _send(self) -> None:
        row, self._row = self._row, {}
        if not row or self._step < self._first:
            return
        for key in sorted(row.keys() - self._defined):
            self._run.define_metric(key, step_metric=STEP, summary="none" if key.startswith("val/") else None)
            self._defined.add(key)
        self._run.log({**row, STEP: self._step}, step=self._step, commit=True)
        self._first = self._step + 1

    def _keep_best(self, values: Row) -> None:
        score = values.get("val/accuracy", values.get("val/top1", -math.inf)), values.get("val/auc", 0.0)
        if score > self._best:
            self._best = score
            validation = {key: value for key, value in values.items() if key.startswith("val/")}
            self._run.summary.update({**validation, "best_step": self._step})

    def _look(self) -> None:
        """Whether the server is still there; W&B's own process would only try again in silence."""
        if self.mode != "online" or self._gone or time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        unreachable = _why_unreachable()
        if unreachable is not None:
            self._gone = True
            log.warning(
                "W&B cannot be reached any more (%s); the run goes on, and W&B gets the rest when it answers again",
                unreachable,
            )

    def publish(self, exhibit: Exhibit) -> None:
        """Numbers into the summary; tables and pictures into the last row, files as an artifact."""
        import wandb

        # Of files W&B would ask the server now, and wait for it a minute, in vain.
        self._unsent = self.mode == "online" and _why_unreachable() is not None
        if not self._unsent and (not exhibit.final or "results" not in self._run.summary.keys()):  # noqa: SIM118
            shown: dict[str, Any] = {key: wandb.Image(picture) for key, picture in exhibit.pictures.items()}
            for key, table in exhibit.tables.items():
                rows = [list(row) for row in table.rows]
                shown[key] = wandb.Table(columns=list(table.columns), data=rows, allow_mixed_types=True)
            self._defined |= shown.keys()  # they have no curve
            if self._step < self._first:  # the last row is there already
                self._step, self._row = self._first, {}
            self._row.update(shown)
            if exhibit.files:
                self._run.log_artifact(_artifact(exhibit, f"run-{self.identity}"))
        self._send()
        self._run.summary.update(dict(exhibit.numbers))

    def finish(self, ended: bool) -> None:
        """Ends the W&B run; a row whose validation has not come goes nowhere, since a resumed run brings it again."""
        if ended:
            self._send()
        try:
            self._run.finish(exit_code=0 if ended else 1)
        except TimeoutError:
            self._unsent = True
        if self._unsent:
            log.warning(
                "W&B has not taken all of this run within %s s: `python -m facelab.training.send '%s'` sends the rest",
                LAST_WORDS,
                self.folder,
            )


def _artifact(exhibit: Exhibit, name: str) -> Any:
    """A `wandb.Artifact`; the files are not copied, since nobody writes a finished record again."""
    import wandb

    made = wandb.Artifact(name, type="record", metadata=dict(exhibit.about))
    for inside, file in exhibit.files.items():
        made.add_file(str(file), name=inside, policy="immutable", skip_cache=True)
    return made


def _settings(mode: str) -> Any:
    """W&B's settings: silent, apart from other runs of this process, and not waiting for ever."""
    import wandb

    wanted: dict[str, Any] = {
        **{"mode": mode, "silent": True, "console": "off", "reinit": "create_new"},
        **{"finish_timeout": LAST_WORDS, "finish_timeout_raises": True, "x_file_stream_retry_max": 1_000_000},
    }
    known = wandb.Settings()  # older releases lack some
    return wandb.Settings(**{key: value for key, value in wanted.items() if hasattr(known, key)})


def wandb_id(group: str, job: str) -> str:
    """The W&B id of a job: the same at every start, so that a resumed run continues its own history."""
    return hashlib.sha256(f"{group}/{job}".encode()).hexdigest()[:16]


def _identity(run: Path, group: str, job: str) -> str:
    """The id that the run directory says; at a first start the job's own, or that of an agent of a W&B sweep."""
    file = run / "environment.json"
    known = json.loads(file.read_text()).get("wandb") if file.is_file() else None
    agents = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return known or agents or wandb_id(group, job)


def _reachable_mode(mode: str) -> str:
    """What `mode` comes to where W&B's server may not answer: then `auto` is offline, and `online` is refused."""
    asked = mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    unreachable = _why_unreachable() if mode == "online" else None
    if unreachable is None:
        return mode
    if asked == "online":
        raise ValueError(
            f"W&B cannot be reached ({unreachable}): set logger.mode=offline and sync later, or logger=csv for "
            "metrics.csv alone"
        )
    log.warning("W&B cannot be reached (%s): this run is offline, `wandb sync` sends it later", unreachable)
    return "offline"


def _has_key() -> bool:
    """Whether W&B has a key, without asking its server whether it is a good one."""
    import wandb

    settings = wandb.setup().settings
    if os.environ.get("WANDB_API_KEY") or settings.api_key:
        return True
    try:
        known = netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, NetrcParseError):
        return False
    return known.authenticators(urlsplit(settings.base_url).hostname or "") is not None


def _why_unreachable() -> str | None:
    """Why W&B's server takes no connection; None where it does, or where a proxy stands between."""
    import wandb

    server = urlsplit(wandb.setup().settings.base_url)
    if server.hostname is None or getproxies().get(server.scheme):
        return None
    port = server.port or (80 if server.scheme == "http" else 443)
    try:
        socket.create_connection((server.hostname, port), timeout=PATIENCE).close()
    except OSError as error:
        return f"{server.hostname}: {error.strerror or error}"
    return None
