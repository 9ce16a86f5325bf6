"""Build the base networks, their oracle weights and the data of this folder.

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
import onnx_ir
import onnx_ir.passes.common as common_passes
import onnxruntime as ort  # type: ignore[import-untyped, unused-ignore]
import onnxscript.optimizer
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_iris  # type: ignore[import-untyped]
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]
from torch import Tensor, nn

Weights = dict[str, NDArray[np.float32]]

FOLDER = Path(__file__).resolve().parent
OPSET = 18
SPLIT_SEED = 0
PART = 0.2  # of the samples, in the validation part and in the test part
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
class Task:
    """What a network answers about which data.

    Attributes:
        samples: reads the data.
        output: name of the network's output.
        width: its size beside the batch.
        loss: of the output and the labels.
        predict: the class of each sample, from the output.
    """

    samples: Callable[[], "Samples"]
    output: str
    width: int
    loss: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[NDArray[np.float32]], NDArray[np.int64]]


@dataclass(frozen=True)
class BaseNetwork:
    """One network: its file name, architecture, seed, and how its oracle weights are trained.

    Attributes:
        training: None when no oracle is trained.
        rewrite: let the exporter rewrite the graph; it would fold a BatchNormalization into the
            Conv before it.
    """

    name: str
    task: Task
    construct: Callable[[], nn.Module]
    seed: int
    training: Training | None
    rewrite: bool = True


class Samples(NamedTuple):
    """Inputs and their labels."""

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
    weights: int
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


class Residual(nn.Module):
    """Two convolutions with BatchNormalization, a skip connection around the second."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.fc = nn.Linear(2 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 8, 8] to logits [N, 10]."""
        h = torch.relu(self.norm1(self.conv1(x)))
        h = torch.relu(self.norm2(self.conv2(h)) + h)
        h = nn.functional.max_pool2d(h, 2)
        h = torch.relu(self.conv3(h))  # [N, 2·channels, 4, 4]
        logits: Tensor = self.fc(h.mean((2, 3)))
        return logits


class Projection(nn.Module):
    """x @ weight + bias; unlike nn.Linear's, this weight is exported as it is, not transposed."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        scale = inputs**-0.5
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * scale)
        self.bias = nn.Parameter(torch.randn(outputs) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """[…, inputs] to […, outputs]."""
        return x @ self.weight + self.bias


class Transformer(nn.Module):
    """One transformer encoder layer, norm first, over the 8 rows of the image."""

    def __init__(self, heads: int = 2, head_size: int = 16, hidden: int = 64) -> None:
        super().__init__()
        width = heads * head_size
        self.split = (-1, 8, heads, head_size)
        self.embed = Projection(8, width)
        self.position = nn.Parameter(torch.randn(8, width) * 0.1)
        self.norm1 = nn.LayerNorm(width)
        self.query, self.key = Projection(width, width), Projection(width, width)
        self.value, self.mix = Projection(width, width), Projection(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up, self.down = Projection(width, hidden), Projection(hidden, width)
        self.norm3 = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 8, 8] to logits [N, 10]."""
        h = self.embed(x.squeeze(1)) + self.position  # [N, 8, width]
        h = h + self.attend(self.norm1(h))
        h = h + self.down(nn.functional.gelu(self.up(self.norm2(h))))
        logits: Tensor = self.fc(self.norm3(h).mean(1))
        return logits

    def attend(self, h: Tensor) -> Tensor:
        """Multi-head self-attention, [N, 8, width] to the same."""
        q, k, v = (
            projection(h).reshape(self.split).transpose(1, 2)  # [N, heads, 8, head_size]
            for projection in (self.query, self.key, self.value)
        )
        scores = torch.softmax(q @ k.transpose(2, 3) * self.split[-1] ** -0.5, dim=-1)
        mixed: Tensor = self.mix((scores @ v).transpose(1, 2).reshape(-1, 8, h.shape[-1]))
        return mixed


class Recurrent(nn.Module):
    """A GRU that reads the image row by row."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.gru = nn.GRU(8, hidden)
        self.fc = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 1, 8, 8] to logits [N, 10]."""
        _, last = self.gru(x.squeeze(1).transpose(0, 1))
        logits: Tensor = self.fc(last.squeeze(0))
        return logits


def probs() -> nn.Module:
    """Multilayer perceptron that ends in Softmax."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        flatten=nn.Flatten(),
        fc1=nn.Linear(64, 48),
        relu=nn.ReLU(),
        fc2=nn.Linear(48, 10),
        softmax=nn.Softmax(dim=1),
    )
    return nn.Sequential(layers)


def binary() -> nn.Module:
    """Multilayer perceptron with one logit, that ends in Sigmoid."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        fc1=nn.Linear(4, 8), relu=nn.ReLU(), fc2=nn.Linear(8, 1), sigmoid=nn.Sigmoid()
    )
    return nn.Sequential(layers)


def three_node() -> nn.Module:
    """The 3-node network of Blum & Rivest 1988: two hidden units and an output."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        fc1=nn.Linear(7, 2), units=nn.Sigmoid(), fc2=nn.Linear(2, 1), sigmoid=nn.Sigmoid()
    )
    return nn.Sequential(layers)


def digits() -> Samples:
    """scikit-learn's 8x8 digits; the pixels are integers 0..16, so x is exact in float32."""
    bunch = load_digits()
    x = (bunch.images[:, np.newaxis] / 16).astype(np.float32)
    return Samples(x, bunch.target.astype(np.int64))


def iris() -> Samples:
    """scikit-learn's iris, in centimetres; the label is 1 for virginica, 0 for the two others."""
    bunch = load_iris()
    return Samples(bunch.data.astype(np.float32), (bunch.target == 2).astype(np.int64))


# The Fano plane: its 7 points cannot be split so that each line has points of both parts; without
# one of its 7 lines they can.
LINES = ((0, 1, 2), (0, 3, 4), (0, 5, 6), (1, 3, 5), (1, 4, 6), (2, 3, 6))


def splitting() -> Samples:
    """Blum & Rivest's training set for the Set Splitting instance LINES, on booleans.

    The origin has label 1, the indicator of each element 0, the indicator of each set 1.
    """
    elements = np.eye(7, dtype=np.float32)
    sets = [elements[list(line)].sum(axis=0) for line in LINES]
    x = np.stack([np.zeros(7, dtype=np.float32), *elements, *sets])
    y = np.array([1, *[0] * len(elements), *[1] * len(sets)], dtype=np.int64)
    return Samples(x, y)


def nll(p: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihood of probabilities [N, C]."""
    return nn.functional.nll_loss(torch.log(p), y)


def binary_cross_entropy(p: Tensor, y: Tensor) -> Tensor:
    """Of the probability of class 1, [N, 1]."""
    return nn.functional.binary_cross_entropy(p, y[:, None].float())


def largest(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class of the largest of the scores [N, C]."""
    classes: NDArray[np.int64] = scores.argmax(axis=1)
    return classes


def likely(p: NDArray[np.float32]) -> NDArray[np.int64]:
    """Class 1 where its probability [N, 1] is above ½."""
    return (p[:, 0] > 0.5).astype(np.int64)


LOGITS = Task(digits, "logits", 10, nn.functional.cross_entropy, largest)
PROBS = Task(digits, "probs", 10, nll, largest)
VIRGINICA = Task(iris, "p", 1, binary_cross_entropy, likely)
SPLITTING = Task(splitting, "p", 1, binary_cross_entropy, likely)

BASE_NETWORKS = (
    BaseNetwork("digits_linear", LOGITS, linear, 1, Training(learning_rate=1e-2)),
    BaseNetwork("digits_mlp", LOGITS, mlp, 2, Training(learning_rate=2e-3)),
    BaseNetwork("digits_cnn", LOGITS, Residual, 3, Training(learning_rate=4e-3), rewrite=False),
    BaseNetwork("digits_attention", LOGITS, Transformer, 4, Training(learning_rate=2e-3)),
    BaseNetwork("digits_gru", LOGITS, Recurrent, 5, Training(learning_rate=5e-3)),
    BaseNetwork("digits_probs", PROBS, probs, 6, Training(learning_rate=2e-3)),
    BaseNetwork("iris_binary", VIRGINICA, binary, 7, Training(learning_rate=1e-2, batch_size=16)),
)

THREE_NODE = BaseNetwork("three_node", SPLITTING, three_node, 8, None)
"""For the oracle `exhaustive`, which finds what gradient descent does not."""


def split(samples: Samples) -> Split:
    """Stratified, seeded 60/20/20 split; the order of the samples is kept within a part."""
    y = samples.y
    size = math.ceil(PART * len(y))
    rest, test = train_test_split(
        np.arange(len(y)), test_size=size, stratify=y, random_state=SPLIT_SEED
    )
    train, validation = train_test_split(
        rest, test_size=size, stratify=y[rest], random_state=SPLIT_SEED
    )
    parts = (np.sort(part) for part in (train, validation, test))
    return Split(*(Samples(samples.x[part], y[part]) for part in parts))


def construct_base(network: BaseNetwork) -> nn.Module:
    """The network with PyTorch's default initial weights for its seed, and none like another."""
    torch.manual_seed(network.seed)
    net = network.construct().eval()
    for tensor in weight_tensors(net):
        make_distinct(tensor)
    return net


def weight_tensors(net: nn.Module) -> list[Tensor]:
    """What training changes: the parameters, and the running means and variances."""
    return [t for t in (*net.parameters(), *net.buffers()) if t.is_floating_point()]


@torch.no_grad()
def make_distinct(tensor: Tensor) -> None:
    """Random factors for ones, small random numbers for zeros; others stay as they are.

    The exporter merges equal initializers (the scales 1 and biases 0 of all normalisations of one
    width), and the merged one could not hold two weights of an oracle.
    """
    if bool((tensor == 0).all()):
        tensor.copy_(0.1 * torch.randn(tensor.shape))
    elif bool((tensor == 1).all()):  # also variances, which must stay positive
        tensor.copy_(torch.exp(0.1 * torch.randn(tensor.shape)))


def train(network: BaseNetwork, base: nn.Module, data: Split) -> nn.Module:
    """A trained copy of base: the epoch of least validation loss."""
    settings, loss_of = network.training, network.task.loss
    assert settings is not None
    net, best, best_loss, waited = copy.deepcopy(base), copy.deepcopy(base), math.inf, 0
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    torch.manual_seed(network.seed)  # the order of the samples, and dropout if the network has any
    for _ in range(settings.max_epochs):
        train_epoch(net, optimizer, loss_of, data.train, settings.batch_size)
        loss = mean_loss(net, loss_of, data.validation)
        if loss < best_loss:
            best, best_loss, waited = copy.deepcopy(net), loss, 0
        else:
            waited += 1
        if waited == settings.patience:
            break
    return best.eval()


def train_epoch(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    part: Samples,
    batch_size: int,
) -> None:
    """One pass over the training part in random order."""
    x, y = torch.from_numpy(part.x), torch.from_numpy(part.y)
    net.train()
    for batch in torch.split(torch.randperm(len(y)), batch_size):
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(net(x[batch]), y[batch]))
        optimizer.step()


@torch.no_grad()
def mean_loss(net: nn.Module, loss_of: Callable[[Tensor, Tensor], Tensor], part: Samples) -> float:
    """Mean loss over a part."""
    net.eval()
    return loss_of(net(torch.from_numpy(part.x)), torch.from_numpy(part.y)).item()


def export(network: BaseNetwork, net: nn.Module, data: Split) -> onnx.ModelProto:
    """The network as ONNX, with nothing in it that depends on the machine."""
    shape = data.train.x.shape[1:]
    # A batch of 1 would be taken as a fixed size by torch.export.
    program = torch.onnx.export(
        net,
        (torch.zeros(2, *shape),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["x"],
        output_names=[network.task.output],
        dynamic_shapes=({0: torch.export.Dim("N")},),
        verbose=False,
        optimize=network.rewrite,
    )
    if program is None:
        raise RuntimeError(f"{network.name}: torch.onnx.export returned no program")
    if not network.rewrite:
        program.model = tidy(program.model)
    model = program.model_proto
    strip_metadata(model)
    name_recurrent_weights(model)
    constants_to_nodes(model)
    model.producer_name, model.producer_version = "gdu-compile models/build.py", ""
    model.graph.name = network.name
    check_interface(model, {"x": ["N", *shape], network.task.output: ["N", network.task.width]})
    return model


def tidy(model: onnx_ir.Model) -> onnx_ir.Model:
    """What the exporter's optimizer does, without its rewriting."""
    common_passes.InlinePass()(model)
    onnxscript.optimizer.fold_constants_ir(model)
    return onnx_ir.passes.Sequential(
        common_passes.RemoveUnusedNodesPass(),
        common_passes.RemoveUnusedOpsetsPass(),
        common_passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    )(model).model


def name_recurrent_weights(model: onnx.ModelProto) -> None:
    """Name the inputs W, R, B of a GRU after it.

    The exporter reorders PyTorch's weights for them, and names the results by a running number.
    """
    names = {
        name: f"{node.op_type.lower()}.{formal}"
        for node in model.graph.node
        if node.op_type == "GRU"
        for name, formal in zip(node.input[1:4], "WRB", strict=True)
    }
    for tensor in (*model.graph.initializer, *model.graph.value_info):
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


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


def constants_to_nodes(model: onnx.ModelProto) -> None:
    """Turn each float initializer that is no weight into a Constant node.

    The exporter numbers them (√2 of Gelu, the initial state of the GRU). As initializers, a trainer
    would take them for weights, and the oracle would have to have a value for them.
    """
    for tensor in [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]:
        if tensor.name.startswith("val_"):
            node = onnx.helper.make_node(
                "Constant", [], [tensor.name], f"node_{tensor.name}", value=tensor
            )
            model.graph.node.insert(0, node)
            model.graph.initializer.remove(tensor)


def check_interface(model: onnx.ModelProto, shapes: dict[str, list[str | int]]) -> None:
    """Raise unless the model is valid ONNX with inputs and outputs of these shapes."""
    onnx.checker.check_model(model, full_check=True)
    declared = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    if declared != shapes:
        raise ValueError(f"{model.graph.name}: unexpected inputs and outputs {declared}")


def float_initializers(model: onnx.ModelProto) -> Weights:
    """The float32 initializers by name: the weights, and float constants if there are any."""
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }


def oracle_weights(base: onnx.ModelProto, trained: onnx.ModelProto, count: int) -> Weights:
    """The initializers of the trained export that training changed.

    Both exports have one structure, so a weight has one name in both. The count, of the network's
    parameters and running statistics, finds a lost weight.
    """
    before, after = float_initializers(base), float_initializers(trained)
    if {name: w.shape for name, w in before.items()} != {
        name: w.shape for name, w in after.items()
    }:
        raise ValueError(f"{base.graph.name}: the base and its trained copy export differently")
    weights = {name: w for name, w in after.items() if not np.array_equal(w, before[name])}
    if sum(w.size for w in weights.values()) != count:
        raise ValueError(f"{base.graph.name}: {sorted(weights)} are not {count} numbers")
    return weights


def with_weights(model: onnx.ModelProto, weights: Weights) -> onnx.ModelProto:
    """A copy of the model that has these weights in place of its initializers of that name."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    return changed


def accuracy(model: onnx.ModelProto, task: Task, part: Samples) -> float:
    """The share of the part that onnxruntime classifies correctly."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run([task.output], {"x": part.x})
    return float(np.mean(task.predict(output) == part.y))


def build(network: BaseNetwork, data: Split) -> Result:
    """Write a network's base and oracle, then evaluate the written files on the test part."""
    base_net = construct_base(network)
    trained_net = train(network, base_net, data)
    count = sum(tensor.numel() for tensor in weight_tensors(base_net))
    base = export(network, base_net, data)
    weights = oracle_weights(base, export(network, trained_net, data), count)

    base_path = FOLDER / f"{network.name}.onnx"
    oracle_path = FOLDER / f"{network.name}.oracle.npz"
    base_path.write_bytes(base.SerializeToString(deterministic=True))
    save_arrays(oracle_path, weights)

    base = onnx.load(base_path)
    oracle = with_weights(base, dict(np.load(oracle_path)))
    before, after = (accuracy(model, network.task, data.test) for model in (base, oracle))
    return Result(network.name, count, before, after)


def build_three_node() -> None:
    """Write the 3-node network and its data; it is trained by nobody here."""
    samples = splitting()
    base = export(THREE_NODE, construct_base(THREE_NODE), Split(samples, samples, samples))
    (FOLDER / "three_node.onnx").write_bytes(base.SerializeToString(deterministic=True))
    save_arrays(FOLDER / "three_node.npz", samples._asdict())


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write an uncompressed .npz; numpy gives its members a constant time stamp."""
    np.savez(path, **arrays)


def write_table(results: list[Result], readme: Path) -> None:
    """Replace the accuracy table between its two markers in README.md."""
    rows = [
        "| model | weights | base's test accuracy | oracle's test accuracy |",
        "|---|---:|---:|---:|",
        *(
            f"| {r.name} | {r.weights} | {r.base_accuracy:.2%} | {r.oracle_accuracy:.2%} |"
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
    for samples in (digits, iris):
        save_arrays(FOLDER / f"{samples.__name__}.npz", samples()._asdict())
    build_three_node()
    results = []
    for network in BASE_NETWORKS:
        result = build(network, split(network.task.samples()))
        print(
            f"{result.name}: base {result.base_accuracy:.2%}, oracle {result.oracle_accuracy:.2%}"
        )
        results.append(result)
    write_table(results, FOLDER / "README.md")


if __name__ == "__main__":
    main()
