"""Trained networks that people use, out of the packages that bring them (packages.txt).

Speech, music, brain waves, text in pictures, objects, file types, names, atoms: written with
PyTorch, TensorFlow and PaddlePaddle, by many exporters.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.zoo.case import Case, Given
from gdu_compile.digits import Array

FOLDER = Path(__file__).resolve().parents[2] / "build" / "zoo-packages"
INSTALL = f"pip install --no-deps --target {FOLDER} -r benchmarks/zoo/packages.txt"
Drawn = Callable[[np.random.Generator], Array]


def real(*shape: int, scale: float = 1.0) -> Drawn:
    """Uniform numbers from 0 to ``scale``."""
    return lambda rng: scale * rng.random(shape, dtype=np.float32)


def picture(*shape: int) -> Drawn:
    """Uniform numbers from −1 to 1: what is left of bytes when their mean is taken off."""
    return lambda rng: 2 * rng.random(shape, dtype=np.float32) - 1


def whole(high: int, *shape: int, dtype: Any = np.int64) -> Drawn:
    """Uniform whole numbers below ``high``."""
    return lambda rng: rng.integers(0, high, shape).astype(dtype)


def ones(*shape: int, dtype: Any = np.bool_) -> Drawn:
    """Of a mask that hides nothing."""
    return lambda rng: np.ones(shape, dtype)


RATE: Drawn = lambda rng: np.array(16000)  # noqa: E731 - samples a second
SPEECH = {"input": real(2, 576), "state": real(2, 2, 128)}
SPIKES = {"raw_signal": real(1, 1, 7500), "spectrogram": real(1, 15, 7500)}
SPELL = {"src": whole(30, 2, 7), "src_mask": ones(2, 7)}
SAY = {"prefix": whole(100, 2, 5), "memory": real(2, 7, 256), "src_mask": ones(2, 7),
       "hidden": real(2, 2, 256)}  # fmt: skip
PEOPLE = "arabic_name_romanizer/resources"
BRAIN = "brainmaze_eeg_models"
READ = "rapidocr_onnxruntime/models"
NETWORKS: dict[str, Mapping[str, Drawn]] = {
    f"{PEOPLE}/encoder": SPELL,
    f"{PEOPLE}/decoder": SAY,
    f"{PEOPLE}/persian/encoder": SPELL,
    f"{PEOPLE}/persian/decoder": SAY,
    "basic_pitch/saved_models/icassp_2022/nmp": {"serving_default_input_2:0": real(1, 43844, 1)},
    f"{BRAIN}/seizure/_models/modelA_paper": {"x": real(2, 100, 20)},
    f"{BRAIN}/seizure/_models/modelB_full": {"x": real(2, 100, 20)},
    f"{BRAIN}/spindles/_models/spindle-detector-eeg": SPIKES,
    f"{BRAIN}/spindles/_models/spindle-detector-ieeg": SPIKES,
    "captcha_whisperer/models/captcha_crnn": {"image": real(2, 3, 60, 160)},
    "caustic/data/best_v2_carbons": {
        "element": whole(3, 9), "amino_acid": whole(20, 9), "atom_role": whole(3, 9),
        "bfactor": real(9), "edge_index": whole(9, 2, 14), "edge_dist": real(14, scale=5),
        "seq_sep": whole(3, 14), "same_residue": real(14), "target_indices": whole(9, 3, 6),
        "target_mask": ones(3, 6), "residue_types": whole(20, 3),
        "residue_geometry": real(3, 52), "target_environment": real(3, 6, 15),
        "temperature_feature": real(3, 1), "target_atom_rsasa": real(3, 6),
        "pos": real(9, 3, scale=5), "node_normal": real(9, 3), "is_hbond": real(14),
        "hb_cos": real(14),
    },
    "chython_rxnmap/rxnmap": {
        "atoms": whole(100, 1, 12), "neighbors": whole(5, 1, 12), "distances": whole(5, 1, 12, 12),
        "roles": whole(3, 1, 12),
    },
    "ddddocr/common": {"input1": real(1, 1, 64, 160)},
    "ddddocr/common_old": {"input1": real(1, 1, 64, 160)},
    "ddddocr/common_det": {"images": real(1, 3, 416, 416)},
    "magika/models/standard_v3_3/model": {"bytes": whole(257, 3, 2048, dtype=np.int32)},
    "nudenet/320n": {"images": real(1, 3, 96, 96)},
    f"{READ}/ch_PP-OCRv4_det_infer": {"x": picture(1, 3, 96, 96)},
    f"{READ}/ch_PP-OCRv4_rec_infer": {"x": picture(2, 3, 48, 160)},
    f"{READ}/ch_ppocr_mobile_v2.0_cls_infer": {"x": picture(2, 3, 48, 192)},
    "silero_vad/data/silero_vad": {**SPEECH, "sr": RATE},
    "silero_vad/data/silero_vad_16k_op15": {**SPEECH, "sr": RATE},
    "silero_vad/data/silero_vad_16k_sequence": {
        "input": real(3, 576), "h": real(1, 1, 128), "c": real(1, 1, 128),
    },
    "silero_vad/data/silero_vad_half": SPEECH,
    "silero_vad/data/silero_vad_op18_ifless": {**SPEECH, "sr": RATE},
    "silero_vad/data/silero_vad_openvino_16k": {"input": real(1, 576), "state": real(2, 1, 128)},
}  # fmt: skip


def cases() -> Iterator[Case]:
    """One for each file, called after its folder and itself."""
    for name in NETWORKS:
        package, *folders, stem = name.split("/")
        called = " ".join([*(f for f in folders if f == "persian" or "standard" in f), stem])
        yield Case(called, f"packages, {package}", partial(given, name))


def given(name: str, folder: Path) -> Given:
    """The network as the package has it, in a file of its own.

    Raises:
        FileNotFoundError: the packages are not installed; says how.
    """
    source = FOLDER / f"{name}.onnx"
    if not source.exists():
        raise FileNotFoundError(f"{source} is not there: {INSTALL}")
    path = folder / "network.onnx"
    onnx.save(onnx.load(source), path)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return Given(path, {key: draw(rng) for key, draw in NETWORKS[name].items()})
