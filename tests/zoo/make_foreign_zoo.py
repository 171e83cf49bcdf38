"""Exports the files of other exporters than torch's: tf2onnx (Keras 3 and 2), Paddle, ONNX Runtime's tools, onnxscript.

Each needs an environment of its own, for they don't agree on versions (see README). Run from the repository root::

    python -m tests.zoo.make_foreign_zoo tf2onnx --out tests/zoo

Expected counts are in ``foreign.json``, which is written by hand: they follow from the layers.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

SEED = 20
TOKENS = (6, 32)

Made = Iterator[tuple[str, onnx.ModelProto]]


def keras_models(legacy: bool) -> Made:
    """Keras 3, or with ``legacy`` Keras 2, through tensorflow-cpu and tf2onnx; opset 17."""
    os.environ["TF_USE_LEGACY_KERAS"] = str(int(legacy))
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf
    import tf2onnx

    keras = tf.keras
    layers = keras.layers
    attention = layers.MultiHeadAttention(2, 16)
    made: dict[str, tuple[Any, tuple[int, ...]]] = {
        "layer_norm": (layers.LayerNormalization(), TOKENS),
        "layer_norm_image": (layers.LayerNormalization(), (4, 4, 32)),
        "layer_norm_two_axes": (layers.LayerNormalization(axis=(1, 2)), TOKENS),
        "gelu_tanh": (lambda x: layers.Lambda(lambda y: tf.nn.gelu(y, approximate=True))(x), TOKENS),
        "gelu_erf": (
            lambda x: layers.Lambda(lambda y: 0.5 * y * (1.0 + tf.math.erf(y / tf.sqrt(2.0))))(x),
            TOKENS,
        ),
        "silu": (layers.Activation("swish"), TOKENS),
        "attention": (lambda x: attention(x, x), TOKENS),
    }
    if not legacy:
        made["rms_norm"] = (layers.RMSNormalization(), TOKENS)
        made["rms_scaling"] = (layers.LayerNormalization(rms_scaling=True), TOKENS)
        made["hard_swish"] = (layers.Activation("hard_silu"), TOKENS)
    for name, (layer, shape) in made.items():
        keras.utils.set_random_seed(SEED)
        keras.backend.clear_session()
        x = layers.Input(shape)
        model = keras.Model(x, layer(x))
        rng = np.random.default_rng(SEED)
        model.set_weights([w + rng.standard_normal(w.shape).astype(w.dtype) * 0.2 for w in model.get_weights()])
        signature = (tf.TensorSpec((None, *shape), tf.float32, name="x"),)
        function = tf.function(lambda x, model=model: model(x, training=False), input_signature=signature)
        proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=17)
        yield f"{name}_keras{2 if legacy else 3}", proto


def paddle_models() -> Made:
    """Paddle's own layers through paddle2onnx at opsets 13 and 17."""
    import paddle
    from paddle import nn

    class SelfAttention(nn.Layer):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiHeadAttention(32, 2)

        def forward(self, x: Any) -> Any:
            return self.attention(x, x, x)

    layers: dict[str, Callable[[], Any]] = {
        "layer_norm": lambda: nn.LayerNorm(32),
        "gelu_erf": nn.GELU,
        "silu": nn.Silu,
        "hard_swish": nn.Hardswish,
        "attention": SelfAttention,
    }
    for opset in (13, 17):
        for name, build in layers.items():
            paddle.seed(SEED)
            layer = build()
            layer.eval()
            for parameter in layer.parameters():
                parameter.set_value(parameter + 0.2 * paddle.randn(parameter.shape))
            with tempfile.TemporaryDirectory() as folder:
                path = f"{folder}/model"
                spec = paddle.static.InputSpec([None, *TOKENS], "float32", "x")
                paddle.onnx.export(layer, path, input_spec=[spec], opset_version=opset)
                yield f"{name}_paddle{opset}", onnx.load(f"{path}.onnx")


def runtime_models() -> Made:
    """Exported files after ONNX Runtime's transformer optimizer, and between the Q and DQ of its static quantizer."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
    from onnxruntime.transformers import optimizer

    folder = Path(__file__).parent
    # Optimized: name of the result, file it stems from.
    for name, source in {"skip_norm": "swin_ts17", "skip_rms_norm": "llama_ts17"}.items():
        options = optimizer.FusionOptions("bert")
        for switch in (
            "attention",
            "gelu",
            "bias_gelu",
            "rotary_embeddings",
            "embed_layer_norm",
            "bias_skip_layer_norm",
        ):
            setattr(options, f"enable_{switch}", switch == "bias_skip_layer_norm")
        optimized = optimizer.optimize_model(
            str(folder / f"{source}.onnx"),
            "bert",
            num_heads=2,
            hidden_size=32,
            optimization_options=options,
            opt_level=0,
        )
        with tempfile.TemporaryDirectory() as scratch:
            optimized.save_model_to_file(f"{scratch}/model.onnx")
            yield f"{name}_ort", onnx.load(f"{scratch}/model.onnx")

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            rng = np.random.default_rng(SEED)
            self.feeds = iter([{"x": rng.standard_normal((2, *TOKENS)).astype(np.float32)} for _ in range(4)])

        def get_next(self) -> Any:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as scratch:
        path = f"{scratch}/model.onnx"
        quantize_static(
            str(folder / "layer_norm_ts17.onnx"),
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["LayerNormalization"],
        )
        yield "layer_norm_quantized_ort", onnx.load(path)


def onnxscript_models() -> Made:
    """A function that stays a function."""
    from .onnxscript_zoo import model

    yield "layer_norm_function_onnxscript", model()


EXPORTERS: dict[str, Callable[[], Made]] = {
    "tf2onnx": lambda: keras_models(legacy=False),
    "tf2onnx-keras2": lambda: keras_models(legacy=True),
    "paddle": paddle_models,
    "onnxruntime": runtime_models,
    "onnxscript": onnxscript_models,
}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exporter", choices=EXPORTERS)
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    arguments = parser.parse_args()
    for name, model in EXPORTERS[arguments.exporter]():
        data = model.SerializeToString(deterministic=True)
        partial_path = arguments.out / f"{name}.onnx.partial"
        partial_path.write_bytes(data)
        os.replace(partial_path, arguments.out / f"{name}.onnx")
        print(f"{name}.onnx: {len(data)} bytes", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
