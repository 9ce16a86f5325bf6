"""The options, one frozen dataclass per command: the CLI's flags and the API's keywords.

A field's metadata holds its help text; ``cli.py`` turns fields into click
options, and ``of`` turns the API's keywords into an instance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar, get_type_hints

from gdu_compile.digits import CODES, DEFAULT_GAIN, UNIT_ROUNDOFF
from gdu_compile.errors import InputError
from gdu_compile.name_matching import Rename, parse_rules
from gdu_compile.option_types import converter

T = TypeVar("T")
EMITTED = ("onnx", "torch", "both")
MAX_FLOAT32 = (2 - 2**-23) * 2.0**127


RUN_LIMIT = 3600.0
"""Seconds for one forward call (1024 samples where the batch is dynamic): it shall stop what does
not end, and nothing else."""


def option(default: T, help: str, *, metavar: str | None = None, short: str | None = None) -> T:
    """A dataclass field with what the command line needs to know."""
    field: T = dataclasses.field(
        default=default, metadata={"help": help, "metavar": metavar, "short": short}
    )
    return field


RUN_LIMIT_HELP = "Seconds that one forward call may take; inf for any time."


def run_limit_problems(seconds: float) -> list[str]:
    """What is wrong with --run-limit; NaN is."""
    return [] if seconds > 0 else [f"--run-limit {seconds}: must be above 0, or inf"]


def output_problems(output: Path | None) -> list[str]:
    """What is wrong with the form of -o."""
    if output is not None and output.name in {"", ".."}:
        return [f"-o {output}: names no file; name one"]
    return []


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all option classes."""

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Self:
        """An instance from keywords; unknown ones are named.

        Raises:
            InputError: an unknown option, or a value of the wrong type or out of range.
        """
        known = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(set(keywords) - set(known)):
            raise InputError(
                f"unknown option{'s' * (len(unknown) > 1)}: {', '.join(unknown)}",
                [f"known: {', '.join(known)}"],
            )
        return cls(**keywords)

    def __post_init__(self) -> None:
        problems = self.convert()
        problems += self.problems()
        if problems:
            raise InputError("bad options", problems)

    def convert(self) -> list[str]:
        """Make every value one of its field's type; complaints about those that are not.

        What cannot be converted becomes the default, so that the other checks can go on.
        """
        problems = []
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if value is None and field.default is None:
                continue
            convert, wanted = converter(hint)
            try:
                converted = convert(value)
            except (TypeError, ValueError, OverflowError):
                flag = "--" + field.name.replace("_", "-")
                problems.append(f"{flag} {value!r:.80}: must be {wanted}, not "
                                f"{type(value).__name__}")  # fmt: skip
                converted = field.default
            object.__setattr__(self, field.name, converted)  # frozen for everybody else
        return problems

    def problems(self) -> list[str]:
        """Every value that is out of range."""
        return []


@dataclass(frozen=True, kw_only=True)
class DataOptions(Options):
    """What the network is run on."""

    data: Path | None = option(
        None, "Training data: .npz with 'y' and 'x', or one array per model input. "
        "Without it: a seeded synthetic batch with random labels.", metavar="D.npz",
    )  # fmt: skip
    test_data: Path | None = option(
        None, "Held-out data, in the form of --data: the accuracy is that on it.", metavar="D.npz",
    )  # fmt: skip
    hold_out: float = option(0.0, "Share of --data that is not trained on, chosen by the seed: "
                             "the accuracy is that on it.", metavar="SHARE")  # fmt: skip
    loss: str | None = option(
        None, "As in torch.nn.functional: 'cross_entropy(label_smoothing=0.1)'. "
        "Without it: the default of the output kind (docs/commands.md).", metavar="'NAME(ARGS)'",
    )  # fmt: skip
    device: str = option("cpu", "Torch device: cpu, cuda, cuda:1 …", metavar="DEVICE")
    seed: int = option(0, "Seed of synthetic data and of the order of samples.")
    run_limit: float = option(RUN_LIMIT, RUN_LIMIT_HELP, metavar="SECONDS")

    def problems(self) -> list[str]:
        """Every value that is out of range."""
        problems = [f"--seed {self.seed}: must be 0 or more"] if self.seed < 0 else []
        problems += run_limit_problems(self.run_limit)
        if not 0 <= self.hold_out < 1:
            problems.append(f"--hold-out {self.hold_out}: must be 0 or more, and below 1")
        if self.data is None and (self.test_data is not None or self.hold_out):
            problems.append("--test-data and --hold-out need --data")
        if self.test_data is not None and self.hold_out:
            problems.append("--test-data and --hold-out: give one of them")
        return problems


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DataOptions):
    """How an extended model is trained (``gdu-compile train``)."""

    optimizer: str = option("SGD()", "As in PyTorch: 'SGD(momentum=0.9, nesterov=True)'.",
                            metavar="'CLASS(ARGS)'")  # fmt: skip
    lr: float = option(0.1, "Learning rate; any in range works (THEORY Lemma 4).")
    steps: int | None = option(None, "Optimizer steps. Without it: 3; for learn one pass over the "
                               "data, and one step more.", metavar="INTEGER")  # fmt: skip
    batch_size: int | None = option(None, "Samples a step; 0 for the full batch. Without it: 64; "
                                    "for learn the full batch.", metavar="INTEGER")  # fmt: skip
    output: Path | None = option(None, "Where to write.", metavar="FILE", short="-o")
    force: bool = option(False, "Replace existing files.")

    def problems(self) -> list[str]:
        """Every value that is out of range."""
        problems = super().problems()
        if self.steps is not None and self.steps < 1:
            problems.append(f"--steps {self.steps}: must be 1 or more")
        if self.batch_size is not None and self.batch_size < 0:
            problems.append(f"--batch-size {self.batch_size}: must be 0 (full batch) or more")
        if not 0 <= self.lr <= MAX_FLOAT32:
            problems.append(f"--lr {self.lr}: must be 0 or more, and finite in float32")
        return problems + output_problems(self.output)


@dataclass(frozen=True, kw_only=True)
class CompileOptions(TrainOptions):
    """Everything that ``gdu-compile compile`` can be told."""

    logits: str | None = option(None, "Output, or value inside, to take as logits.",
                                metavar="NAME")  # fmt: skip
    digits: str = option("auto", "Digit code: linear16, float16, linear8, pow2, linear4, linear2, "
                         "linear1; auto: the smallest that the bounds allow for the optimizer "
                         "and the steps.", metavar="CODE")  # fmt: skip
    theta_dtype: str = option("float32", "Dtype of θ: float32 or bfloat16.", metavar="DTYPE")
    class_axis: int | None = option(None, "Class axis of that output. Without it: the Softmax's, "
                                    "or by rules (docs/networks.md).", metavar="AXIS")  # fmt: skip
    gain: float = option(DEFAULT_GAIN, "Gain γ of the recorder, a power of two: 2**-80.",
                         metavar="2**-N")  # fmt: skip
    batch_limit: int = option(2**20, "N: the largest batch that will ever be trained on.")
    bucket_bytes: int | None = option(
        None, "Size of one trainable tensor at which a new one begins. Without it: 64 MB; for "
        "learn 8 MB.", metavar="INTEGER",
    )  # fmt: skip
    max_iterations: int = option(10**6, "Bound on the iterations of each Loop of an algorithm.")
    rename: Rename = option((), "Rename oracle tensors by re.sub, before they are matched; may be "
        "given several times. An = in REGEX is written \\=.", metavar="REGEX=REPL")  # fmt: skip
    allow_extra: bool = option(False, "Ignore oracle tensors that the model does not have.")
    strict: bool = option(
        False, "A weight that the oracle does not cover, or that cannot be recorded, is an error."
    )
    cover_all: bool = option(False, "Record what the oracle lacks at its present value.")
    untie: bool = option(False, "An oracle tensor called NAME@NODE.INPUT is for that use of NAME "
                         "alone, where several share it; inspect lists them.")  # fmt: skip
    emit: str = option("onnx", "What is written: onnx, torch (NAME.gdu.py and "
                       "NAME.gdu.safetensors, which need only torch), or both.",
                       metavar="FORM")  # fmt: skip
    confirm: bool = option(True, "Train and verify; without: write the extended model only.")
    dump_dir: Path | None = option(None, "Write the graph after each pass into this folder; "
        "what was written stays when a later pass refuses.", metavar="DIR")  # fmt: skip
    stop_after: str | None = option(None, "Stop after this pass and write what there is.",
                                    metavar="PASS")  # fmt: skip
    dry_run: bool = option(False, "Rewrite in memory, report, write nothing.")
    why: str | None = option(None, "Explain what happens to this tensor.", metavar="NAME")

    def problems(self) -> list[str]:
        """Every value that is out of range."""
        problems = super().problems()
        if not 1 <= self.batch_limit <= 2**62:
            problems.append(f"--batch-limit {self.batch_limit}: must be 1 … 2**62")
        if self.digits not in {"auto", *CODES}:
            problems.append(f"--digits {self.digits}: auto, {', '.join(CODES)}")
        if self.theta_dtype not in UNIT_ROUNDOFF:
            problems.append(f"--theta-dtype {self.theta_dtype}: {' or '.join(UNIT_ROUNDOFF)}")
        if self.emit not in EMITTED:
            problems.append(f"--emit {self.emit}: {', '.join(EMITTED)}")
        if self.emit != "onnx" and self.stop_after is not None:
            problems.append(f"--emit {self.emit}: the torch form is that of a whole extension; "
                            "leave --stop-after out")  # fmt: skip
        if not 1 <= self.max_iterations <= 2**62:
            problems.append(f"--max-iterations {self.max_iterations}: must be 1 … 2**62")
        if self.bucket_bytes is not None and self.bucket_bytes < 1:
            problems.append(f"--bucket-bytes {self.bucket_bytes}: must be 1 or more")
        problems += parse_rules(self.rename)[1]
        return problems


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(DataOptions):
    """How somebody's trained θ is checked (``gdu-compile verify``)."""


@dataclass(frozen=True, kw_only=True)
class WriteOptions(Options):
    """Where extract and apply write."""

    output: Path | None = option(None, "Where to write.", metavar="FILE", short="-o")
    force: bool = option(False, "Replace existing files.")

    def problems(self) -> list[str]:
        """Every value that is out of range."""
        return output_problems(self.output)


@dataclass(frozen=True, kw_only=True)
class ExtractOptions(WriteOptions):
    """How a trained file is folded (``gdu-compile extract``)."""

    run_limit: float = option(RUN_LIMIT, RUN_LIMIT_HELP, metavar="SECONDS")

    def problems(self) -> list[str]:
        """Every value that is out of range."""
        return super().problems() + run_limit_problems(self.run_limit)
