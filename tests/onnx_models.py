"""Small ONNX files: sound ones, and one for each thing that can be wrong with one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "uint8": TensorProto.UINT8}


def weights(classes: int = 2, channels: int = 3) -> np.ndarray:
    """Return the weights float32[channels, classes] that every model here multiplies the mean colour with."""
    return np.random.default_rng(1).normal(size=(channels, classes)).astype(np.float32)


def model(
    shape: Sequence[Any] = ("n", 3, 32, 32),
    *,
    layout: str = "nchw",
    dtype: str = "float32",
    output: str = "probabilities",
    classes: int = 2,
    opset: int = OPSET,
    extra: Sequence[Any] = (),
) -> Any:
    """Return a model: the mean colour, times weights, and its softmax if `output` is probabilities.

    `extra` are nodes from "logits" to "out", instead of the softmax.
    """
    channels = 4 if shape[1] == 4 else 3
    axes = ([2, 3] if layout == "nchw" else [1, 2])[: len(shape) - 2]
    last = extra or [helper.make_node("Softmax" if output == "probabilities" else "Identity", ["logits"], ["out"])]
    nodes = [
        helper.make_node("Cast", ["tiles"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["colour"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
        *last,
    ]
    graph = helper.make_graph(
        nodes,
        "colour",
        [helper.make_tensor_value_info("tiles", TYPES[dtype], list(shape))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights(classes, channels), "weights")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="tests")
    made.ir_version = IR_VERSION
    return made


def with_opset(model: Any, domain: str, version: int) -> Any:
    """Return the model with the operators of one more domain."""
    model.opset_import.append(helper.make_opsetid(domain, version))
    return model


def save(made: Any, path: Path) -> Path:
    """Write a model into one file."""
    path.write_bytes(made.SerializeToString())
    return path


def save_external(made: Any, path: Path, location: str = "weights.bin", told: str | None = None) -> Path:
    """Write a model with its weights in a file beside it; `told`: what it says instead of that name."""
    onnx.save(made, path, save_as_external_data=True, location=location, size_threshold=0)
    if told is not None:
        kept = onnx.load(path, load_external_data=False)
        for tensor in kept.graph.initializer:
            for entry in tensor.external_data:
                entry.value = told if entry.key == "location" else entry.value
        save(kept, path)
    return path


def foreign() -> Any:
    """Return a model with an operator of a domain of its own."""
    made = model(extra=[helper.make_node("Stain", ["logits"], ["out"], domain="my.ops")])
    made.opset_import.append(helper.make_opsetid("my.ops", 1))
    return made


def two_outputs() -> Any:
    """Return a model with the outputs "out" and "logits"."""
    made = model()
    made.graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    return made


def fixed_inside() -> Any:
    """Return a model of any batch whose own reshape takes a batch of 1."""
    made = model(extra=[helper.make_node("Reshape", ["logits", "shape"], ["out"])])
    made.graph.initializer.append(numpy_helper.from_array(np.array([1, 2], np.int64), "shape"))
    return made


def one_row() -> Any:
    """Return a model that averages over its batch."""
    return model(extra=[helper.make_node("ReduceMean", ["logits"], ["out"], axes=[0], keepdims=1)])


def corner() -> Any:
    """Return a model of logits that reads the pixel at the top left, which differs between views."""
    ends = [numpy_helper.from_array(np.array(at, np.int64), name) for at, name in (([0, 0], "from"), ([1, 1], "to"))]
    axes = numpy_helper.from_array(np.array([2, 3], np.int64), "at")
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["tiles", "from", "to", "at"], ["pixel"]),
            helper.make_node("Flatten", ["pixel"], ["colour"]),
            helper.make_node("MatMul", ["colour", "weights"], ["out"]),
        ],
        "corner",
        [helper.make_tensor_value_info("tiles", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weights(), "weights"), *ends, axes],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    made.ir_version = IR_VERSION
    return made


def large_inside(times: int = 64) -> Any:
    """Return a model that computes with tiles enlarged `times` times a side: 50 MB a tile of 32 px."""
    made = model(output="logits")
    nodes = [helper.make_node("Tile", ["tiles", "repeats"], ["large"]), *made.graph.node]
    nodes[1].input[0] = "large"
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.append(numpy_helper.from_array(np.array([1, 1, times, times], np.int64), "repeats"))
    return made


def not_a_number() -> Any:
    """Return a model whose logits are NaN: the logarithm of a negative number."""
    minus = helper.make_node("Neg", ["logits"], ["minus"])
    sure = helper.make_node("Abs", ["minus"], ["size"])
    return model(
        extra=[minus, sure, helper.make_node("Neg", ["size"], ["below"]), helper.make_node("Log", ["below"], ["out"])]
    )


def centred_in_batch() -> Any:
    """Return a model that subtracts the mean of its batch, as batch normalisation in training does."""
    mean = helper.make_node("ReduceMean", ["logits"], ["mean"], axes=[0], keepdims=1)
    return model(extra=[mean, helper.make_node("Sub", ["logits", "mean"], ["out"])])


def random() -> Any:
    """Return a model that adds noise, as dropout in training does."""
    noise = helper.make_node("RandomNormalLike", ["logits"], ["noise"])
    return model(extra=[noise, helper.make_node("Add", ["logits", "noise"], ["out"])])


def sigmoids(classes: int) -> Any:
    """Return a model of independent probabilities."""
    return model(classes=classes, extra=[helper.make_node("Sigmoid", ["logits"], ["out"])])


def sequence() -> Any:
    """Return a model whose output is a sequence of tensors; that of scikit-learn's ZipMap is one too."""
    made = model(extra=[helper.make_node("SequenceConstruct", ["logits"], ["out"])])
    del made.graph.output[:]
    row = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    made.graph.output.append(helper.make_value_info("out", helper.make_sequence_type_proto(row)))
    return made


def no_columns() -> Any:
    """Return a model whose rows are empty."""
    made = model(extra=[helper.make_node("Slice", ["logits", "zero", "zero", "one"], ["out"])])
    for name, value in (("zero", 0), ("one", 1)):
        made.graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    return made


def blind() -> Any:
    """Return a model with the same logits for every tile."""
    made = model(extra=[helper.make_node("Mul", ["logits", "zero"], ["out"])])
    made.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    return made
