"""Losses as torch.nn.functional spells them: ``cross_entropy(label_smoothing=0.1)``.

The text is parsed, never evaluated.  An output kind (``logits.py``) has a default
loss and others that go with it; every one of them is a function of the output and
of ``y`` alone, and reaches the recorder by ordinary automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gdu_compile.call_text import call_text, parse_call
from gdu_compile.contracts import LogitsSite
from gdu_compile.errors import InputError

if TYPE_CHECKING:
    import torch

CLASS_LOSSES = ("cross_entropy", "nll_loss", "focal_loss", "multi_margin_loss")
"""Losses whose targets are classes: integers, the logits' shape without the class axis.
All others take floats in the shape of the output."""

COLUMN_LOSSES = ("binary_cross_entropy_with_logits", "multilabel_soft_margin_loss",
                 "soft_margin_loss")  # fmt: skip
"""Losses in which every column of logits is a yes-or-no question of its own."""

VALUE_LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "poisson_nll_loss",
                "hinge_embedding_loss")  # fmt: skip
"""Losses that make a plain float output ``values`` when ``--loss`` names them."""

DISTANCES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")

GOES_WITH: dict[str, tuple[str, ...]] = {
    "logits": ("cross_entropy", "focal_loss", "multi_margin_loss", *COLUMN_LOSSES),
    "one logit": COLUMN_LOSSES,
    "log_probabilities": ("nll_loss", "focal_loss", "kl_div"),
    "probabilities": ("nll_loss", "focal_loss", *DISTANCES),
    "sigmoid": ("binary_cross_entropy", *DISTANCES),
    "values": VALUE_LOSSES,
}
"""Output kind → the losses that go with it, the default first."""

DEFAULT_LOSS = {kind: losses[0] for kind, losses in GOES_WITH.items()}

IN_0_1 = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div",
          "multilabel_soft_margin_loss")  # fmt: skip
"""Losses whose float targets are probabilities."""

SIGNS = ("soft_margin_loss", "hinge_embedding_loss")
"""Losses whose float targets are −1 or 1."""

TENSORS = ("weight", "pos_weight")
EXAMPLE = "cross_entropy(label_smoothing=0.1)"


def column_kind(site: LogitsSite) -> str:
    """The site's row of GOES_WITH: its kind, or "one logit"."""
    return "one logit" if site.kind == "logits" and site.classes == 1 else site.kind


@dataclass(frozen=True)
class LossSpec:
    """A loss of torch.nn.functional, or focal_loss, and its keyword arguments.

    Example:
        >>> loss = LossSpec.parse("cross_entropy(label_smoothing=0.1, ignore_index=0)")
        >>> loss.name, loss.arguments
        ('cross_entropy', {'label_smoothing': 0.1, 'ignore_index': 0})
        >>> str(loss), str(LossSpec.parse("mse_loss()"))
        ('cross_entropy(label_smoothing=0.1, ignore_index=0)', 'mse_loss')
    """

    name: str
    arguments: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> LossSpec:
        """Read ``name`` or ``name(key=literal, …)``.

        Raises:
            InputError: the text is nothing of that form, or asks for no scalar.
        """
        name, arguments = parse_call(text, "--loss", EXAMPLE)
        if arguments.get("reduction", "mean") not in ("mean", "sum", "batchmean"):
            raise InputError(f"--loss {text!r}: reduction must be 'mean' or 'sum', a scalar")
        return cls(name, arguments)

    @classmethod
    def of(cls, text: str | None, site: LogitsSite) -> LossSpec:
        """The loss that the text names, or the default of the output kind.

        Raises:
            InputError: it cannot be read, or does not go with the output.
        """
        loss = cls.parse(DEFAULT_LOSS[column_kind(site)] if text is None else text)
        loss.check_kind(site)
        return loss

    def __str__(self) -> str:
        return call_text(self.name, self.arguments) if self.arguments else self.name

    @property
    def takes_classes(self) -> bool:
        """Whether its targets are classes; otherwise floats in the shape of the output."""
        return self.name in CLASS_LOSSES

    @property
    def ignore_index(self) -> int | None:
        """The class that is no class but means "leave out"; None when the loss has none."""
        if self.name not in ("cross_entropy", "nll_loss", "focal_loss"):
            return None
        value = self.arguments.get("ignore_index", -100)
        return value if isinstance(value, int) else -100

    def check_kind(self, site: LogitsSite) -> None:
        """Raise InputError when the loss does not go with the output kind."""
        kind = column_kind(site)
        if self.name not in GOES_WITH[kind]:
            raise InputError(
                f"--loss {self.name} does not go with the output {site.output!r}, which is "
                f"{'one logit' if kind == 'one logit' else site.kind} ({site.why})",
                [f"losses that do: {', '.join(GOES_WITH[kind])}"],
            )

    def check(self, site: LogitsSite) -> None:
        """Raise InputError when the loss cannot be computed: unknown or bad arguments."""
        import torch

        shape = [2] * len(site.dims)
        if len(shape) > 1:
            shape[site.axis] = site.classes
        output = torch.full(shape, 0.5, requires_grad=True)
        if self.takes_classes:
            del shape[site.axis]
            target = torch.zeros(shape, dtype=torch.int64)
        else:
            target = torch.ones(shape)
        try:
            value = self(output, target, site)
        except InputError:
            raise
        except Exception as error:  # whatever the function makes of these arguments
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"--loss {self}: {said}") from error
        if value.shape:
            raise InputError(f"--loss {self}: gives {list(value.shape)}, no scalar")

    def __call__(
        self, output: torch.Tensor, target: torch.Tensor, site: LogitsSite
    ) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            output: float32, the graph output ``site.output``.
            target: int64 in the output's shape without the class axis, or float32 in
                the output's shape.
            site: says which axis holds the classes and what the output is.

        Raises:
            InputError: the shapes do not go together.
        """
        import torch

        wanted = list(output.shape)
        alike = self.takes_classes and len(wanted) == len(site.dims)
        if alike and wanted[site.axis] != site.classes:
            raise InputError(f"the output {site.output!r} is declared with {site.classes} columns "
                             f"on axis {site.axis}, but is {wanted}; export it again")  # fmt: skip
        if self.takes_classes:
            del wanted[site.axis]
        if list(target.shape) != wanted:
            raise InputError(
                f"a batch of 'y' has shape {list(target.shape)}, but the output {site.output!r} "
                f"{list(output.shape)} needs {wanted}; give --data that fits"
            )
        function = focal_loss if self.name == "focal_loss" else getattr(
            torch.nn.functional, self.name
        )  # fmt: skip
        if self.takes_classes:
            # [N, …, C] and [N, …]: every sample, token or pixel is one row.
            output = output.movedim(site.axis, -1).reshape(-1, site.classes)
            target = target.reshape(-1)
            function = on_scores(function, self.name, site.kind)
        result: torch.Tensor = function(output, target, **self.keywords(output))
        return result

    def keywords(self, output: torch.Tensor) -> dict[str, Any]:
        """The arguments, with class weights as a tensor beside the output."""
        return {
            key: output.new_tensor(value) if key in TENSORS and value is not None else value
            for key, value in self.arguments.items()
        }


def on_scores(function: Callable[..., Any], name: str, kind: str) -> Callable[..., Any]:
    """The loss as a function of the output: nll_loss and focal_loss see log p where it is p."""
    if kind != "probabilities" or name not in ("nll_loss", "focal_loss"):
        return function

    def of_probabilities(p: torch.Tensor, *arguments: Any, **keywords: Any) -> Any:
        import torch

        # log 0 = −∞ has derivative ∞: a class that the armed network rules out must not give NaN.
        return function(p.clamp_min(torch.finfo(p.dtype).tiny).log(), *arguments, **keywords)

    return of_probabilities


def focal_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    *,
    gamma: float = 2.0,
    weight: torch.Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> torch.Tensor:
    """−(1 − p_y)^γ · ln p_y: cross-entropy that looks away from what is right already.

    Args:
        input: float [n, C], logits or log-probabilities (softmax does not change those).
        target: int64 [n], classes.
        gamma: 0 is cross-entropy.
        weight: α, float [C].
        ignore_index: targets that do not count.
        reduction: "mean" over the targets that count, or "sum".

    Raises:
        ValueError: γ is negative, or there is no such reduction.

    Source:
        Lin, Goyal, Girshick, He, Dollár, Focal Loss for Dense Object Detection,
        arXiv 1708.02002, equations 4 and 5; here with a softmax over C classes.

    Example:
        >>> import torch
        >>> z, y = torch.tensor([[0.0, 0.0]]), torch.tensor([1])
        >>> round(float(focal_loss(z, y)), 4)  # ln 2 / 4
        0.1733
    """
    import torch

    if gamma < 0:
        raise ValueError(f"gamma {gamma} must be 0 or more")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    log_p = torch.nn.functional.log_softmax(input, dim=-1)  # n x C
    counts = target != ignore_index
    safe = torch.where(counts, target, 0)
    log_p_y = log_p.gather(1, safe[:, None])[:, 0]  # n
    loss = -((1 - log_p_y.exp()) ** gamma) * log_p_y * counts
    if weight is not None:
        loss = loss * weight[safe]
    return loss.sum() if reduction == "sum" else loss.sum() / counts.sum().clamp_min(1)
