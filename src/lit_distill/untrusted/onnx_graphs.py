"""What an ONNX file asks of ONNX Runtime, read from its bytes before that does: how many nodes, and of which kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

from lit_distill.untrusted.showing import printable

NODES: Final = 20_000
"""In a graph: the largest networks that are exported have some 5,000."""
_DOMAINS: Final = ("", "ai.onnx")
# Of ONNX's own, without those whose memory ONNX Runtime takes elsewhere than for tensors: texts, sequences, sets,
# boxes of detectors; and without loops, branches and what is random.
_NAMED: Final = """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
    BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu CenterCropPad Clip Col2Im
    Compress Concat Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumProd CumSum DeformConv
    DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear Einsum Elu Equal Erf Exp Expand EyeLike Flatten
    Floor GRU Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf
    IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul
    MatMulInteger Max MaxPool MaxUnpool Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonZero Not OneHot Or PRelu
    Pad Pow QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
    ReverseSequence RotaryEmbedding Round Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size
    Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum SwiGLU Swish Tan Tanh TensorScatter
    ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
_KINDS: Final = frozenset(_NAMED.split())
# Numbers of fields in onnx.proto.
_GRAPH, _TRAINING, _FUNCTIONS = 7, 20, 25  # of a model
_NODE, _INITIALIZER, _SPARSE = 1, 5, 15  # of a graph
_OP, _ATTRIBUTE, _DOMAIN = 4, 5, 7  # of a node
_NUMBER, _TEXT, _TEXTS = 3, 4, 9  # of an attribute
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE_TENSOR, _SPARSE_TENSORS = 5, 6, 10, 11, 22, 23  # of an attribute
_TYPE, _EXTERNAL, _LOCATION = 2, 13, 14  # of a tensor
_STRING = 8  # a type of tensors

_Field: TypeAlias = "tuple[int, int | memoryview]"


def check_graph(content: bytes) -> None:
    """Refuse an ONNX file that does more than compute one node after the other.

    Loops, branches and functions, which may call each other, take time and memory without end for a few bytes; texts
    and sequences take memory that ONNX Runtime does not count. Tensors in other files could name any file of the
    machine, and in memory any address of this process.

    Raises:
        ValueError: it is none that this library writes, by its kinds of content or the number of its nodes.

    Example:
        >>> check_graph(b"")
        >>> check_graph(b"\\xca\\x01\\x00")
        Traceback (most recent call last):
        ...
        ValueError: it defines functions: export it with them inlined
    """
    nodes = 0
    for number, value in _fields(memoryview(content)):
        if number in (_TRAINING, _FUNCTIONS):
            said = "defines functions: export it with them inlined" if number == _FUNCTIONS else "holds a training loop"
            raise ValueError(f"it {said}")
        for part, inner in _fields(value) if number == _GRAPH else ():
            if part == _NODE:
                nodes += 1
                if nodes > NODES:
                    raise ValueError(f"it has more than {NODES:,} nodes, the limit")
                _check_node(inner)
            elif part == _INITIALIZER:
                _check_tensor(inner)
            elif part == _SPARSE:
                raise ValueError("it holds sparse tensors, which unfold to any size: export it with dense ones")


def _check_node(node: int | memoryview) -> None:
    fields = list(_fields(node))
    named = b"".join(value for number, value in fields if number == _OP and not isinstance(value, int))
    kind = printable(named.decode("utf-8", "replace"))[:80]
    for number, value in fields:
        if number == _DOMAIN and (isinstance(value, int) or bytes(value).decode("utf-8", "replace") not in _DOMAINS):
            raise ValueError(f"its node {kind} is none of ONNX's own: export it with standard operators alone")
        for part, inner in _fields(value) if number == _ATTRIBUTE else ():
            if part in (_SUBGRAPH, _SUBGRAPHS):
                raise ValueError(f"its node {kind} holds a graph, as loops and branches do: export it without them")
            if part in (_SPARSE_TENSOR, _SPARSE_TENSORS):
                raise ValueError(f"its node {kind} holds a sparse tensor, which unfolds to any size")
            if part in (_TENSOR, _TENSORS):
                _check_tensor(inner)
            makes_text = part in (_TEXT, _TEXTS) if kind == "Constant" else part == _NUMBER and inner == _STRING
            if kind in ("Constant", "Cast") and makes_text:
                raise ValueError(f"its node {kind} makes texts, which take any memory: export it with numbers alone")
    if kind not in _KINDS:
        raise ValueError(f"its node {kind} is none that networks need: export it without")


def _check_tensor(tensor: int | memoryview) -> None:
    for number, value in _fields(tensor):
        if number == _EXTERNAL or (number == _LOCATION and value != 0):
            raise ValueError("it keeps tensors in other files (external data): export it as one file")
        if number == _TYPE and value == _STRING:
            raise ValueError("it holds texts, which take any memory: export it with numbers alone")


def _fields(message: int | memoryview) -> Iterator[_Field]:
    """Number and content of each field of a protobuf message: bytes, or a whole number (0 where it has a fixed size).

    Raises:
        ValueError: it is damaged.
    """
    if isinstance(message, int):
        raise ValueError("it is damaged: a number where a message is to be")
    place, end = 0, len(message)
    while place < end:
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if tag >= 1 << 32 or not number or kind not in (0, 1, 2, 5):
            raise ValueError("it is damaged: a field of no kind")
        value: int | memoryview = 0
        if kind == 0:
            value, place = _varint(message, place)
        else:
            size = {1: 8, 5: 4}.get(kind, 0)
            if kind == 2:
                size, place = _varint(message, place)
                value = message[place : place + size]
            place += size
        if place > end:
            raise ValueError("it is damaged: a field is longer than its message")
        yield number, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("it is damaged: a number without end")
