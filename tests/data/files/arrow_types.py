"""Every type that Arrow, Parquet and data sets hold, with a value of it, and what JSON says in its place."""

import datetime
import decimal

import numpy as np
import pyarrow

NO = object()  # no value of JSON says this: an error wherever it is read
STORED = [
    (pyarrow.string(), "Hi", "Hi"),
    (pyarrow.large_string(), "Hi", "Hi"),
    (pyarrow.string_view(), "Hi", "Hi"),
    (pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), "Hi", "Hi"),
    (pyarrow.run_end_encoded(pyarrow.int32(), pyarrow.string()), "Hi", "Hi"),
    (pyarrow.json_(), '{"a": 1}', '{"a": 1}'),
    (pyarrow.string(), "", ""),
    (pyarrow.bool_(), True, True),
    (pyarrow.bool_(), False, False),
    (pyarrow.bool8(), 1, True),
    (pyarrow.int8(), -3, -3),
    (pyarrow.uint64(), 2**63, 2**63),
    (pyarrow.float64(), 0.5, 0.5),
    (pyarrow.float64(), 3.0, 3.0),
    (pyarrow.float32(), 0.1, 0.1),
    (pyarrow.float16(), np.float16(0.1), 0.1),
    (pyarrow.float64(), float("inf"), NO),
    (pyarrow.binary(), b"Hi", NO),
    (pyarrow.large_binary(), b"Hi", NO),
    (pyarrow.binary_view(), b"Hi", NO),
    (pyarrow.binary(2), b"Hi", NO),
    (pyarrow.date32(), datetime.date(2026, 1, 31), "2026-01-31"),
    (pyarrow.date64(), datetime.date(2026, 1, 31), "2026-01-31"),
    (pyarrow.timestamp("s"), datetime.datetime(2026, 1, 31, 9, 5), "2026-01-31T09:05:00"),
    (pyarrow.timestamp("ns"), 1, "1970-01-01T00:00:00.000000001"),
    (pyarrow.timestamp("ms", "+02:00"), 0, "1970-01-01T02:00:00+02:00"),
    (pyarrow.time32("s"), datetime.time(9, 5), "09:05:00"),
    (pyarrow.time64("us"), datetime.time(9, 5, 0, 7), "09:05:00.000007"),
    (pyarrow.duration("s"), datetime.timedelta(1), NO),
    (pyarrow.month_day_nano_interval(), (1, 2, 3), NO),
    (pyarrow.uuid(), bytes(16), "00000000-0000-0000-0000-000000000000"),
    (pyarrow.list_(pyarrow.int32()), [5, 6], [5, 6]),
    (pyarrow.large_list(pyarrow.int32()), [5, 6], [5, 6]),
    (pyarrow.list_(pyarrow.int32(), 2), [5, 6], [5, 6]),
    (pyarrow.list_view(pyarrow.int32()), [5, 6], [5, 6]),
    (pyarrow.list_(pyarrow.int32()), [5, None], [5, None]),
    (pyarrow.list_(pyarrow.float32()), [0.1, 1.0], [0.1, 1.0]),
    (pyarrow.list_(pyarrow.float64()), [float("nan")], NO),
    (pyarrow.list_(pyarrow.decimal128(5, 2)), [decimal.Decimal("1.50")], NO),
    (pyarrow.struct([("a", pyarrow.float32())]), {"a": 0.1}, {"a": 0.1}),
    (pyarrow.struct([("a", pyarrow.int8()), ("b", pyarrow.int8())]), {"a": 1}, NO),
    (pyarrow.struct([("a", pyarrow.float64())]), {"a": float("nan")}, NO),
    (pyarrow.struct([("a", pyarrow.binary())]), {"a": b"Hi"}, NO),
    (pyarrow.map_(pyarrow.string(), pyarrow.int8()), {"a": 1}, {"a": 1}),
    (pyarrow.map_(pyarrow.string(), pyarrow.int8()), {"a": None}, {"a": None}),
    (pyarrow.map_(pyarrow.int8(), pyarrow.int8()), [(1, 2)], NO),
    (pyarrow.map_(pyarrow.string(), pyarrow.int8()), [("a", 1), ("a", 2)], NO),
]
IN_COLUMNS = [  # what differs under the name of a column, where null is nothing
    (pyarrow.null(), None, None),
    (pyarrow.string(), None, None),
    (pyarrow.float64(), float("nan"), None),
    (pyarrow.float32(), float("nan"), None),
    (pyarrow.struct([("a", pyarrow.int8())]), None, None),
    (pyarrow.decimal128(5, 2), decimal.Decimal("1.50"), "1.50"),
    (pyarrow.decimal256(9, 7), decimal.Decimal("0.0000001"), "0.0000001"),
    (pyarrow.time64("ns"), 1_500, "00:00:00.0000015"),
]


def stored(kind, value):
    if isinstance(kind, pyarrow.BaseExtensionType):
        return pyarrow.ExtensionArray.from_storage(kind, pyarrow.array([value], kind.storage_type))
    if pyarrow.types.is_dictionary(kind) or pyarrow.types.is_run_end_encoded(kind):
        plain = pyarrow.array([value])
        return plain.dictionary_encode() if pyarrow.types.is_dictionary(kind) else pyarrow.compute.run_end_encode(plain)
    return pyarrow.array([value], kind)


def arrow_file(columns):
    """The bytes of a file with one row."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, (content := pyarrow.table(columns)).schema) as writer:
        writer.write_table(content)
    return sink.getvalue().to_pybytes()
