"""Architectures of the package transformers, small and with random weights, by both exporters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.case import Case, Given
from benchmarks.zoo.exporters import EXPORTERS, export, export_twice, seeded

WIDTH, LAYERS, HEADS, INNER, VOCABULARY, TOKENS, CLASSES = 16, 2, 2, 32, 50, 7, 4
TEXT = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "intermediate_size": INNER, "max_position_embeddings": 32,
    "num_labels": CLASSES,
}  # fmt: skip
LLAMA = {**TEXT, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": INNER, "image_size": 16, "patch_size": 8, "num_labels": CLASSES,
}  # fmt: skip
T5 = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": 8, "d_ff": INNER, "num_layers": LAYERS,
    "num_heads": HEADS, "decoder_start_token_id": 0,
}  # fmt: skip


class Outputs(nn.Module):
    """A model of the package as a function of tensors.

    Args:
        model: any of the package's.
        names: of its parameters, in order.
        wanted: of the fields of what it returns.
    """

    def __init__(self, model: nn.Module, names: list[str], wanted: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.wanted = wanted

    def forward(self, *inputs: Tensor) -> Any:
        """The fields; one alone is no tuple."""
        given = dict(zip(self.names, inputs, strict=True))
        found = self.model(**given, **self.more)
        fields = tuple(found[name] for name in self.wanted)
        return fields if len(fields) > 1 else fields[0]

    @property
    def more(self) -> dict[str, bool]:
        """Language models return no cache."""
        config: Any = self.model.config
        return {"use_cache": False} if getattr(config, "use_cache", False) else {}


def ids() -> dict[str, Tensor]:
    """Token ids [2, TOKENS]."""
    return {"input_ids": torch.randint(3, VOCABULARY, (2, TOKENS))}


def masked() -> dict[str, Tensor]:
    """Token ids, and which of them count."""
    mask = torch.ones(2, TOKENS, dtype=torch.int64)
    mask[1, -2:] = 0
    return {**ids(), "attention_mask": mask}


def sources() -> dict[str, Tensor]:
    """Token ids for an encoder and for a decoder."""
    return {**ids(), "decoder_input_ids": torch.randint(3, VOCABULARY, (2, 5))}


def pixels() -> dict[str, Tensor]:
    """Images [2, 3, 16, 16]."""
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


Inputs = Callable[[], dict[str, Tensor]]
LOGITS = ["logits"]
# class → (class of its configuration, arguments, inputs, outputs)
NETWORKS: dict[str, tuple[str, dict[str, Any], Inputs, list[str]]] = {
    "BertForSequenceClassification": ("BertConfig", TEXT, masked, LOGITS),
    "BertForTokenClassification": ("BertConfig", TEXT, ids, LOGITS),
    "BertForMaskedLM": ("BertConfig", TEXT, masked, LOGITS),
    "BertModel": ("BertConfig", TEXT, ids, ["last_hidden_state", "pooler_output"]),
    "BertForQuestionAnswering": (
        "BertConfig", {**TEXT, "num_labels": 2}, ids, ["start_logits", "end_logits"]),
    "RobertaForSequenceClassification": ("RobertaConfig", TEXT, masked, LOGITS),
    "DistilBertForSequenceClassification": (
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS,
         "hidden_dim": INNER, "num_labels": CLASSES}, ids, LOGITS),
    "AlbertForSequenceClassification": (
        "AlbertConfig", {**TEXT, "embedding_size": 8}, ids, LOGITS),
    "ElectraForTokenClassification": (
        "ElectraConfig", {**TEXT, "embedding_size": 8}, ids, LOGITS),
    "GPT2LMHeadModel": (
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS,
         "n_positions": 32}, masked, LOGITS),
    "LlamaForCausalLM": ("LlamaConfig", LLAMA, masked, LOGITS),
    "MistralForCausalLM": ("MistralConfig", LLAMA, masked, LOGITS),
    "Qwen2ForCausalLM": ("Qwen2Config", LLAMA, masked, LOGITS),
    "T5ForConditionalGeneration": ("T5Config", T5, sources, LOGITS),
    "T5EncoderModel": ("T5Config", T5, ids, ["last_hidden_state"]),
    "ViTForImageClassification": ("ViTConfig", IMAGE, pixels, LOGITS),
    "DeiTForImageClassification": ("DeiTConfig", IMAGE, pixels, LOGITS),
    "ResNetForImageClassification": (
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": CLASSES},
        pixels, LOGITS),
    "ConvNextForImageClassification": (
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": CLASSES,
         "patch_size": 4}, pixels, LOGITS),
    "MobileNetV2ForImageClassification": (
        "MobileNetV2Config", {"depth_multiplier": 0.1, "num_labels": CLASSES}, pixels, LOGITS),
    "Wav2Vec2ForCTC": (
        "Wav2Vec2Config",
        {**TEXT, "conv_dim": (8, 8), "conv_stride": (4, 4), "conv_kernel": (8, 8),
         "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
         "num_conv_pos_embedding_groups": 2, "vocab_size": 12},
        lambda: {"input_values": torch.randn(2, 400)}, LOGITS),
}  # fmt: skip
TWICE = ("BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM",
         "ViTForImageClassification", "T5ForConditionalGeneration")  # fmt: skip
"""Exported a second time with other weights."""


def cases() -> Iterator[Case]:
    """Every network by every exporter."""
    for name in NETWORKS:
        for exporter in EXPORTERS:
            yield Case(f"{name}, {exporter}", f"transformers, {exporter}",
                       partial(given, name, exporter))  # fmt: skip
    for name in TWICE:
        for exporter in EXPORTERS:
            yield Case(f"{name}, {exporter}, twice", f"transformers, {exporter}",
                       partial(given, name, exporter, twice=True))  # fmt: skip


def given(name: str, exporter: str, folder: Path, twice: bool = False) -> Given:
    """A network on disk; with ``twice`` other weights for it, too, exported by themselves."""
    import transformers

    transformers.logging.set_verbosity_error()
    kind, arguments, inputs, wanted = NETWORKS[name]
    config = getattr(transformers, kind)(**arguments)
    if exporter == "torchscript":
        config._attn_implementation = "eager"  # the exporter has no form for the other ones
    module = seeded(lambda: getattr(transformers, name)(config))
    tensors = inputs()
    whole = Outputs(module, list(tensors), wanted)
    maker = export_twice if twice else export
    return maker(whole, tensors, folder, exporter, len(wanted))
