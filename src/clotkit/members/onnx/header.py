"""Read what an ONNX file says of itself, without loading its weights. Standard library only.

An ONNX file is one Protocol Buffers message, ModelProto of onnx.proto (https://onnx.ai/onnx/repo-docs/IR.html). Only
the fields that decide whether the file may run are read: opsets, the domains of its operators, and external data. The
onnx package is no dependency of a run, and would load all weights.
"""

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from clotkit.errors import WeightsError
from clotkit.files import sha256

NAME = "model.onnx"  # of the file in a member's or an encoder's folder
ADVICE = "export the model again, or fetch the file again"
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types
EXTERNAL = 1  # TensorProto.data_location
# Numbers of fields, by message.
MODEL_IR, MODEL_PRODUCER, MODEL_PRODUCER_VERSION, MODEL_GRAPH, MODEL_OPSET, MODEL_FUNCTION = 1, 2, 3, 7, 8, 25
FUNCTION_NODE, FUNCTION_DOMAIN = 7, 10
OPSET_DOMAIN, OPSET_VERSION = 1, 2
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_SPARSE = 1, 5, 15
NODE_INPUT, NODE_OUTPUT, NODE_OPERATOR, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 4, 5, 7
ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS, ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
SPARSE_TENSORS = (1, 2)
TENSOR_EXTERNAL, TENSOR_LOCATION = 13, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2
PASSING = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}  # operators that leave values as they are


@dataclass
class OnnxHeader:
    """The facts of an ONNX file."""

    ir_version: int = 0
    producer: str = ""  # name and version of the program that wrote it
    opsets: dict[str, int] = field(default_factory=dict)  # version by domain; "" is ONNX's own
    operators: set[tuple[str, str]] = field(default_factory=set)  # (domain, operator)
    functions: set[str] = field(default_factory=set)  # domains of the functions that the file itself defines
    locations: set[str] = field(default_factory=set)  # of external data, as they stand in the file
    makers: dict[str, tuple[str, str]] = field(default_factory=dict)  # operator and its first input, by its output
    has_graph: bool = False

    def operator_of(self, output: str) -> str:
        """Return the operator that makes the values of an output; "" if it is not known."""
        for _ in self.makers:
            operator, first = self.makers.get(output, ("", ""))
            if operator not in PASSING:
                return operator
            output = first
        return ""

    @property
    def opset(self) -> int:
        """Return the version of ONNX's own operators."""
        return self.opsets.get("", self.opsets.get("ai.onnx", 0))

    @property
    def foreign(self) -> dict[str, str]:
        """Return an operator of each domain that is neither ONNX's, onnxruntime's nor defined in the file."""
        own = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"} | self.functions
        return {domain: operator for domain, operator in sorted(self.operators) if domain not in own}


def read_header(path: Path) -> OnnxHeader:
    """Return the facts of an ONNX file. Raises WeightsError if it is missing, cut short, or no ONNX file."""
    header = OnnxHeader()
    try:
        if path.stat().st_size:
            with path.open("rb") as file:  # the mapping ends with the last view of it, which an error may hold
                _read_model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), header)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error
    except (ValueError, IndexError, RecursionError) as error:
        raise WeightsError(f"{path}: is cut short, or no ONNX file; {ADVICE}") from error
    if not (header.has_graph and header.opsets):
        raise WeightsError(f"{path}: {path.stat().st_size} bytes, no ONNX file: no graph or no opset in it; {ADVICE}")
    return header


def external_files(path: Path) -> list[Path]:
    """Return the files beside an ONNX file that hold its external data; most have none.

    Raises WeightsError as read_header does, for one that is missing, and for a URL or a path out of the folder: all
    files of a model lie beside it, where its hash is checked.
    """
    found = []
    for location in sorted(read_header(path).locations):
        if PurePosixPath(location).name != location or "\\" in location or location == path.name:
            raise WeightsError(
                f"{path}: keeps weights at {location!r}; only a file beside it is allowed: save the model again with "
                "its external data in one folder"
            )
        if not (path.parent / location).is_file():
            raise WeightsError(f"{path}: its external data {location} is missing; copy it beside the model")
        found.append(path.parent / location)
    return found


def checked_header(path: Path) -> OnnxHeader:
    """Return the header of a file that may run: its external data is there, its operators are known.

    Raises WeightsError.
    """
    header = read_header(path)
    external_files(path)
    if header.foreign:
        used = ", ".join(f"{operator} of {domain}" for domain, operator in header.foreign.items())
        raise WeightsError(
            f"{path}: uses custom operators ({used}), which onnxruntime lacks; export it with ONNX's own operators"
        )
    return header


def model_sha256(path: Path) -> str:
    """Return the sha256 of an ONNX file and its external data, see sha256_of."""
    return sha256_of({one.name: sha256(one) for one in [path, *external_files(path)]})


def sha256_of(digests: Mapping[str, str]) -> str:
    """Return one sha256 for those of a model's files by name, its own first, whose name does not count."""
    own, *external = digests.items()
    if not external:
        return own[1]
    return hashlib.sha256("\n".join([own[1], *(f"{name} {digest}" for name, digest in external)]).encode()).hexdigest()


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field of a message.

    Raises ValueError or IndexError if it is malformed.
    """
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == LENGTH:
            size, at = _varint(data, at)
        elif wire in {FIXED64, FIXED32}:
            size = 8 if wire == FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(data) or not key >> 3:
            raise ValueError(f"{size} bytes at {at} of {len(data)}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 10 bytes")


def _messages(data: memoryview, *numbers: int) -> Iterator[memoryview]:
    """Yield the fields of a message that have one of these numbers and are messages or texts."""
    for number, value in _fields(data):
        if number in numbers and isinstance(value, memoryview):
            yield value


def _text(data: memoryview, number: int) -> str:
    return "".join(map(_decoded, _messages(data, number)))


def _decoded(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")


def _number(data: memoryview, number: int) -> int:
    return next((value for found, value in _fields(data) if found == number and isinstance(value, int)), 0)


def _read_model(data: memoryview, header: OnnxHeader) -> None:
    header.ir_version = _number(data, MODEL_IR)
    header.producer = f"{_text(data, MODEL_PRODUCER)} {_text(data, MODEL_PRODUCER_VERSION)}".strip()
    for opset in _messages(data, MODEL_OPSET):
        header.opsets[_text(opset, OPSET_DOMAIN)] = _number(opset, OPSET_VERSION)
    for graph in _messages(data, MODEL_GRAPH):
        header.has_graph = True
        _read_graph(graph, header)
        for node in _messages(graph, GRAPH_NODE):
            first = next((_decoded(name) for name in _messages(node, NODE_INPUT)), "")
            for output in _messages(node, NODE_OUTPUT):
                header.makers[_decoded(output)] = (_text(node, NODE_OPERATOR), first)
    for function in _messages(data, MODEL_FUNCTION):
        header.functions.add(_text(function, FUNCTION_DOMAIN))
        for node in _messages(function, FUNCTION_NODE):
            _read_node(node, header)


def _read_graph(data: memoryview, header: OnnxHeader) -> None:
    for node in _messages(data, GRAPH_NODE):
        _read_node(node, header)
    for tensor in _messages(data, GRAPH_INITIALIZER):
        _read_tensor(tensor, header)
    for sparse in _messages(data, GRAPH_SPARSE):
        _read_sparse(sparse, header)


def _read_node(data: memoryview, header: OnnxHeader) -> None:
    header.operators.add((_text(data, NODE_DOMAIN), _text(data, NODE_OPERATOR)))
    for attribute in _messages(data, NODE_ATTRIBUTE):
        for tensor in _messages(attribute, *ATTRIBUTE_TENSORS):
            _read_tensor(tensor, header)
        for graph in _messages(attribute, *ATTRIBUTE_GRAPHS):
            _read_graph(graph, header)
        for sparse in _messages(attribute, *ATTRIBUTE_SPARSE):
            _read_sparse(sparse, header)


def _read_sparse(data: memoryview, header: OnnxHeader) -> None:
    for tensor in _messages(data, *SPARSE_TENSORS):
        _read_tensor(tensor, header)


def _read_tensor(data: memoryview, header: OnnxHeader) -> None:
    if _number(data, TENSOR_LOCATION) != EXTERNAL:
        return
    entries = {_text(entry, ENTRY_KEY): _text(entry, ENTRY_VALUE) for entry in _messages(data, TENSOR_EXTERNAL)}
    header.locations.add(entries.get("location", ""))
