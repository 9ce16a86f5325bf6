"""Build the base networks, their oracle weights and the digits data of this folder.

``python models/build.py`` rewrites every file of the folder except this script and the prose of
README.md. Each step is seeded and runs on one thread, so one machine gives the same bytes each
time. To add a network, add an entry to ``BASE_NETWORKS``.
"""

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime as ort  # type: ignore[import-untyped, unused-ignore]
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import nn

Weights = dict[str, NDArray[np.float32]]

FOLDER = Path(__file__).resolve().parent
OPSET = 18
INPUT_SHAPE = ["N", 1, 8, 8]
OUTPUT_SHAPE = ["N", 10]
SPLIT_SEED = 0
PART_SIZE = 360  # samples in the validation part and in the test part: 20 % of 1797 each
TABLE_BEGIN = "<!-- accuracy table: written by build.py -->"
TABLE_END = "<!-- end of accuracy table -->"


@dataclass(frozen=True)
class Training:
    """AdamW settings, and the early stopping on the validation loss."""

    learning_rate: float
    weight_decay: float = 1e-2
    batch_size: int = 64
    max_epochs: int = 500
    patience: int = 30


@dataclass(frozen=True)
class BaseNetwork:
    """One network: its file name, architecture, seed, and how its oracle weights are trained."""

    name: str
    construct: Callable[[], nn.Module]
    seed: int
    training: Training


class Samples(NamedTuple):
    """Images and their labels."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


class Split(NamedTuple):
    """The three disjoint parts of the data."""

    train: Samples
    validation: Samples
    test: Samples


class Result(NamedTuple):
    """One row of the accuracy table in README.md."""

    name: str
    parameters: int
    base_accuracy: float
    oracle_accuracy: float


def linear() -> nn.Module:
    """Softmax regression on the 64 pixels."""
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(64, 10)))


def mlp() -> nn.Module:
    """Multilayer perceptron with two hidden layers."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        flatten=nn.Flatten(),
        fc1=nn.Linear(64, 64),
        relu1=nn.ReLU(),
        fc2=nn.Linear(64, 32),
        relu2=nn.ReLU(),
        fc3=nn.Linear(32, 10),
    )
    return nn.Sequential(layers)


BASE_NETWORKS = (
    BaseNetwork("digits_linear", linear, seed=1, training=Training(learning_rate=1e-2)),
    BaseNetwork("digits_mlp", mlp, seed=2, training=Training(learning_rate=2e-3)),
)


def digits() -> Samples:
    """scikit-learn's 8x8 digits; the pixels are integers 0..16, so x is exact in float32."""
    bunch = load_digits()
    x = (bunch.images[:, np.newaxis] / 16).astype(np.float32)
    return Samples(x, bunch.target.astype(np.int64))


def split(samples: Samples) -> Split:
    """Stratified, seeded 60/20/20 split; the order of the samples is kept within a part."""
    y = samples.y
    rest, test = train_test_split(
        np.arange(len(y)), test_size=PART_SIZE, stratify=y, random_state=SPLIT_SEED
    )
    train, validation = train_test_split(
        rest, test_size=PART_SIZE, stratify=y[rest], random_state=SPLIT_SEED
    )
    parts = (np.sort(part) for part in (train, validation, test))
    return Split(*(Samples(samples.x[part], y[part]) for part in parts))


def construct_base(network: BaseNetwork) -> nn.Module:
    """The network with PyTorch's default initial weights for its seed."""
    torch.manual_seed(network.seed)
    return network.construct().eval()


def train(base: nn.Module, data: Split, settings: Training, seed: int) -> nn.Module:
    """A trained copy of base: the epoch of least validation loss."""
    net, best, best_loss, waited = copy.deepcopy(base), copy.deepcopy(base), math.inf, 0
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    torch.manual_seed(seed)  # the order of the samples, and dropout if the network has any
    for _ in range(settings.max_epochs):
        train_epoch(net, optimizer, data.train, settings.batch_size)
        loss = mean_loss(net, data.validation)
        if loss < best_loss:
            best, best_loss, waited = copy.deepcopy(net), loss, 0
        else:
            waited += 1
        if waited == settings.patience:
            break
    return best.eval()


def train_epoch(
    net: nn.Module, optimizer: torch.optim.Optimizer, part: Samples, batch_size: int
) -> None:
    """One pass over the training part in random order."""
    x, y = torch.from_numpy(part.x), torch.from_numpy(part.y)
    net.train()
    for batch in torch.split(torch.randperm(len(y)), batch_size):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(net(x[batch]), y[batch]))
        optimizer.step()


@torch.no_grad()
def mean_loss(net: nn.Module, part: Samples) -> float:
    """Mean cross entropy over a part."""
    net.eval()
    logits = net(torch.from_numpy(part.x))
    return nn.functional.cross_entropy(logits, torch.from_numpy(part.y)).item()


def export(net: nn.Module, name: str) -> onnx.ModelProto:
    """The network as ONNX, with nothing in it that depends on the machine."""
    # A batch of 1 would be taken as a fixed size by torch.export.
    program = torch.onnx.export(
        net,
        (torch.zeros(2, 1, 8, 8),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["x"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
    )
    if program is None:
        raise RuntimeError(f"{name}: torch.onnx.export returned no program")
    model = program.model_proto
    strip_metadata(model)
    model.producer_name, model.producer_version = "gdu-compile models/build.py", ""
    model.graph.name = name
    check_interface(model)
    return model


def strip_metadata(message: Any) -> None:
    """Clear the doc strings and metadata of a protobuf message and of every message within it.

    The exporter records stack traces there, with the machine's paths. onnx_ir's pass for this
    skips the metadata of values and of the model itself, hence the walk over the protobuf.
    """
    for field, value in message.ListFields():
        if field.name in {"doc_string", "metadata_props"}:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for child in [value] if hasattr(value, "ListFields") else value:
                strip_metadata(child)


def check_interface(model: onnx.ModelProto) -> None:
    """Raise unless the model is valid ONNX from x [N, 1, 8, 8] to logits [N, 10]."""
    onnx.checker.check_model(model, full_check=True)
    declared = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    if declared != {"x": INPUT_SHAPE, "logits": OUTPUT_SHAPE}:
        raise ValueError(f"{model.graph.name}: unexpected inputs and outputs {declared}")


def float_initializers(model: onnx.ModelProto) -> Weights:
    """The float32 initializers by name: the weights, and float constants if there are any."""
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def oracle_weights(base: onnx.ModelProto, trained: onnx.ModelProto, parameters: int) -> Weights:
    """The initializers of the trained export that training changed.

    Both exports have one structure, so a weight has one name in both, also where the exporter
    folded a transpose into it; a constant is equal in both. The count finds a lost weight.
    """
    before, after = float_initializers(base), float_initializers(trained)
    if {name: w.shape for name, w in before.items()} != {
        name: w.shape for name, w in after.items()
    }:
        raise ValueError(f"{base.graph.name}: the base and its trained copy export differently")
    weights = {name: w for name, w in after.items() if not np.array_equal(w, before[name])}
    if sum(w.size for w in weights.values()) != parameters:
        raise ValueError(f"{base.graph.name}: {sorted(weights)} are not {parameters} parameters")
    return weights


def with_weights(model: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """A copy of the model that has these weights in place of its initializers of that name."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    return changed


def accuracy(model: onnx.ModelProto, part: Samples) -> float:
    """The share of the part that onnxruntime classifies correctly."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"x": part.x})
    return float(np.mean(logits.argmax(axis=1) == part.y))


def build(network: BaseNetwork, data: Split) -> Result:
    """Write a network's base and oracle, then evaluate the written files on the test part."""
    base_net = construct_base(network)
    trained_net = train(base_net, data, network.training, network.seed)
    parameters = sum(p.numel() for p in base_net.parameters())
    base = export(base_net, network.name)
    weights = oracle_weights(base, export(trained_net, network.name), parameters)

    base_path = FOLDER / f"{network.name}.onnx"
    oracle_path = FOLDER / f"{network.name}.oracle.npz"
    base_path.write_bytes(base.SerializeToString(deterministic=True))
    save_arrays(oracle_path, weights)

    base = onnx.load(base_path)
    oracle = with_weights(base, dict(np.load(oracle_path)))
    return Result(network.name, parameters, accuracy(base, data.test), accuracy(oracle, data.test))


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write an uncompressed .npz; numpy gives its members a constant time stamp."""
    np.savez(path, **arrays)


def write_table(results: list[Result], readme: Path) -> None:
    """Replace the accuracy table between its two markers in README.md."""
    rows = [
        "| model | parameters | base's test accuracy | oracle's test accuracy |",
        "|---|---:|---:|---:|",
        *(
            f"| {r.name} | {r.parameters} | {r.base_accuracy:.2%} | {r.oracle_accuracy:.2%} |"
            for r in results
        ),
    ]
    before, rest = readme.read_text(encoding="utf-8").split(TABLE_BEGIN)
    _, after = rest.split(TABLE_END)
    table = "\n".join([TABLE_BEGIN, "", *rows, "", TABLE_END])
    readme.write_text(before + table + after, encoding="utf-8")


def main() -> None:
    """Rebuild the data, then every base network with its oracle, then the table."""
    torch.set_num_threads(1)  # sums in one order: the same bytes each time
    torch.use_deterministic_algorithms(True)
    samples = digits()
    save_arrays(FOLDER / "digits.npz", samples._asdict())
    data = split(samples)
    results = []
    for network in BASE_NETWORKS:
        result = build(network, data)
        print(
            f"{result.name}: base {result.base_accuracy:.2%}, oracle {result.oracle_accuracy:.2%}"
        )
        results.append(result)
    write_table(results, FOLDER / "README.md")


if __name__ == "__main__":
    main()
