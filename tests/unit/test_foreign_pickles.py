"""Hostile pickles are refused, and nothing in them runs."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fleetstep.errors import FleetstepError, ForeignWeightsError
from fleetstep.networks.foreign import tensors
from fleetstep.networks.foreign.edm import read_edm_pickle
from fleetstep.networks.foreign.modules import ALLOWED, ForeignModule, module_of, plain
from fleetstep.networks.foreign.pickles import Record, read_pickle
from fleetstep.networks.foreign.tensors import REBUILD_TENSOR as REBUILD
from fleetstep.networks.foreign.tensors import stored_tensor
from song_unet_files import song_unet, with_filters, write_edm


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def read(payload: bytes) -> Any:
    return read_pickle(io.BytesIO(payload), ALLOWED)


def text(value: str) -> bytes:
    return pickle.SHORT_BINUNICODE + bytes([len(value)]) + value.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """Opcodes that call a global whose name comes from the stack."""
    function = text(module) + text(name) + pickle.STACK_GLOBAL
    return function + pickle.MARK + b"".join(arguments) + pickle.TUPLE + pickle.REDUCE


def whole(*opcodes: bytes) -> bytes:
    return pickle.PROTO + b"\x04" + b"".join(opcodes) + pickle.STOP


class TestNothingRuns:
    """Each payload makes the file `proof` if Python's own unpickler reads it."""

    @staticmethod
    def payloads(proof: Path) -> dict[str, bytes]:
        program = f'__import__("pathlib").Path("{proof}").touch()'
        nested = pickle.dumps(Call(os.system, f"touch {proof}"))
        return {
            "os.system": pickle.dumps({"ema": Call(os.system, f"touch {proof}")}),
            "os.system, protocol 0": pickle.dumps(Call(os.system, f"touch {proof}"), 0),
            "os.system, protocol 2": pickle.dumps(Call(os.system, f"touch {proof}"), 2),
            "eval": pickle.dumps({"ema": 1, "loss_fn": Call(eval, program)}),
            "a name from the stack": whole(call("builtins", "exec", text(program))),
            "a name from the memo": whole(
                text("exec"), pickle.MEMOIZE, text("builtins"), pickle.BINGET, b"\x00",
                pickle.STACK_GLOBAL, text(program), pickle.TUPLE1, pickle.REDUCE, pickle.TUPLE2,
            ),
            "a dotted name": whole(call("collections", "abc.sys.modules.get", text("os"))),
            "INST": b"(" + b"S'" + program.encode() + b"'\n" + b"ibuiltins\nexec\n.",
            "OBJ": whole(pickle.MARK, b"cbuiltins\nexec\n", text(program), pickle.OBJ),
            "a nested storage": whole(
                call("torch.storage", "_load_from_bytes",
                     pickle.BINBYTES + struct.pack("<I", len(nested)) + nested)
            ),
        }  # fmt: skip

    @pytest.mark.parametrize("name", payloads(Path("x")))
    def test_the_payload_is_refused_and_not_run(self, name: str, tmp_path: Path):
        proof, file = tmp_path / "proof", tmp_path / "net.pkl"
        payload = self.payloads(proof)[name]
        file.write_bytes(payload)
        with pytest.raises(ForeignWeightsError) as caught:
            self.consume(file)
        assert not proof.exists()
        assert type(pickle.loads(pickle.dumps(caught.value))) is ForeignWeightsError
        if name not in ("a nested storage", "a dotted name"):
            with contextlib.suppress(Exception):
                pickle.loads(payload)
            assert proof.exists(), "the payload is no threat, and the test proves nothing"

    @staticmethod
    def consume(file: Path) -> None:
        content = read(file.read_bytes())
        # What comes out of a nested storage is judged when its tensor is.
        match content:
            case Record(name="torch.storage._load_from_bytes"):
                stored_tensor(
                    Record("torch._utils._rebuild_tensor_v2", (content, 0, (1,), (1,), False, {})),
                    "x",
                    {},
                )
            case _:
                read_edm_pickle(file)

    def test_the_refusal_names_the_global_what_is_allowed_and_the_remedy(self, tmp_path: Path):
        file = tmp_path / "net.pkl"
        file.write_bytes(pickle.dumps({"ema": Call(os.system, "true")}))
        with pytest.raises(ForeignWeightsError) as caught:
            read_edm_pickle(file)
        assert "refers to posix.system, which is refused" in caught.value.message
        assert "collections.OrderedDict" in caught.value.message
        assert "safetensors" in caught.value.remedy
        assert caught.value.exit_code == 2

    def test_the_source_text_of_a_class_is_ignored(self, tmp_path: Path):
        # It would end the process.
        read_edm_pickle(write_edm(tmp_path / "net.pkl", song_unet("ddpmpp")))

    def test_a_good_file_with_one_bad_global_deep_inside_is_refused(self, tmp_path: Path):
        proof = tmp_path / "proof"
        net = song_unet("ddpmpp")
        file = write_edm(
            tmp_path / "net.pkl", net, note=[{"deep": Call(os.system, f"touch {proof}")}]
        )
        with pytest.raises(ForeignWeightsError, match=r"posix\.system"):
            read_edm_pickle(file)
        assert not proof.exists()


@pytest.mark.parametrize(
    ("payload", "opcode"),
    [
        (whole(text("id"), pickle.BINPERSID), "BINPERSID"),
        (b"Pid\n.", "PERSID"),
        (whole(pickle.EXT1, b"\x01"), "EXT1"),
        (whole(pickle.NONE, pickle.DUP, pickle.TUPLE2), "DUP"),
        (whole(pickle.NEXT_BUFFER), "NEXT_BUFFER"),
    ],
)
def test_opcodes_that_plain_data_does_not_need_are_refused(payload: bytes, opcode: str):
    with pytest.raises(ForeignWeightsError, match=f"opcode {opcode}"):
        read(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not a pickle",
        whole(),
        whole(pickle.TUPLE3),
        whole(pickle.APPENDS),
        whole(pickle.NONE, pickle.NONE, pickle.APPEND),
        whole(pickle.NONE, pickle.NONE, pickle.NONE, pickle.SETITEM),
        whole(pickle.NONE, pickle.NONE),
        whole(pickle.BINGET, b"\x07"),
        whole(text("x"), pickle.EMPTY_TUPLE, pickle.REDUCE),
        whole(pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.BUILD),
        whole(text("x"), pickle.NONE, pickle.STACK_GLOBAL),
        whole(pickle.EMPTY_DICT, pickle.EMPTY_TUPLE, pickle.NONE, pickle.SETITEM),
        pickle.dumps({"ema": 1})[:-3],
        b"\x80\x63.",
    ],
)
def test_damaged_pickles_are_refused(payload: bytes):
    with pytest.raises(ForeignWeightsError):
        read(payload)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_as_pickle_reads_it(protocol: int):
    shared = ["x" * 300, 2**70, -5, 0.5, True, None]
    value = {"a": shared, "b": (1, (2,), (3, 4), ()), "c": [shared, shared], 3: "é", "d": {}}
    value["many"] = list(range(3000))
    found = read(pickle.dumps(value, protocol))
    assert found == value
    assert found["c"][0] is found["a"]


class TestRecords:
    def test_hostile_arguments_of_an_allowed_name_stay_arguments(self):
        bad = read(whole(call("collections", "OrderedDict", text("x"))))
        assert (bad.name, bad.arguments) == ("collections.OrderedDict", ("x",))
        with pytest.raises(ForeignWeightsError, match=r"holds|should be a mapping"):
            plain(bad, "x")
        with pytest.raises(ForeignWeightsError):
            read(whole(call("collections", "OrderedDict") + pickle.EMPTY_DICT + pickle.BUILD
                       + pickle.EMPTY_DICT + pickle.BUILD))  # fmt: skip

    def test_an_allowed_name_is_no_object_to_build_on(self):
        name = text("collections") + text("OrderedDict") + pickle.STACK_GLOBAL
        with pytest.raises(ForeignWeightsError):
            read(whole(name, pickle.EMPTY_DICT, pickle.BUILD))

    def test_modules_without_a_class_or_state_are_none(self):
        name = "torch_utils.persistence._reconstruct_persistent_obj"
        for meta in ({}, {"type": "class", "class_name": "X"}, {"type": "module", "state": {}}):
            assert module_of(Record(name, (meta,))) is None


class TestTensors:
    """A tensor's claims are checked against the bytes that are there."""

    tensor = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)

    def record(self, tensor: torch.Tensor) -> Record:
        return read(pickle.dumps(tensor))

    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64]
    )
    def test_views_and_dtypes_come_back(self, dtype: torch.dtype):
        view = self.tensor.to(dtype)[:, 1:].transpose(0, 2)
        loaded = stored_tensor(self.record(view), "x", {}).load()
        assert loaded.dtype == dtype
        assert torch.equal(loaded, view)
        assert loaded.is_contiguous()

    def test_the_nested_storage_is_what_torch_itself_reads(self):
        record = self.record(self.tensor)
        payload = record.arguments[0].arguments[0]
        theirs = torch.load(io.BytesIO(payload), weights_only=True)
        ours = stored_tensor(record, "x", {}).load().flatten()
        assert torch.equal(torch.empty(0).set_(theirs._untyped_storage), ours)

    @pytest.mark.parametrize(
        ("offset", "shape", "stride"),
        [
            (0, (10**12,), (1,)),
            (0, (10**12,), (0,)),
            (0, (25,), (1,)),
            (24, (1,), (1,)),
            (-1, (1,), (1,)),
            (0, (-1,), (1,)),
            (0, (2, 3), (3,)),
            (0, (4, 4), (12, 1)),
            (0, ("x",), (1,)),
            (0, (True,), (1,)),
        ],
    )
    def test_claims_beyond_the_storage_are_refused(self, offset: int, shape: Any, stride: Any):
        record = self.record(self.tensor)
        record.arguments = (record.arguments[0], offset, shape, stride, *record.arguments[4:])
        with pytest.raises(ForeignWeightsError, match="a storage of 24 elements"):
            stored_tensor(record, "x", {})

    def test_a_storage_that_claims_more_than_it_holds_is_refused(self):
        record = self.record(self.tensor)
        payload = record.arguments[0].arguments[0]
        for forged in (payload[:-4], payload + b"xxxx", payload.replace(b"K\x18", b"K\x19")):
            storage = Record("torch.storage._load_from_bytes", (forged,))
            record.arguments = (storage, *record.arguments[1:])
            with pytest.raises(ForeignWeightsError, match="claims"):
                stored_tensor(record, "x", {})

    def test_what_is_no_tensor_is_refused(self):
        for record in (Record("collections.OrderedDict", ()), Record("numpy.dtype", (1,))):
            with pytest.raises(ForeignWeightsError, match="not a tensor"):
                stored_tensor(record, "x", {})


class TestBombs:
    """Small files that claim much end in a refusal, not in memory or time."""

    @pytest.fixture(autouse=True)
    def _little_memory(self):
        limits = resource.getrlimit(resource.RLIMIT_AS)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 2**20, limits[1]))
        yield
        resource.setrlimit(resource.RLIMIT_AS, limits)

    @pytest.mark.parametrize(
        "payload",
        [
            whole(pickle.BINBYTES8, struct.pack("<Q", 2**40), b"x"),
            whole(pickle.BINUNICODE8, struct.pack("<Q", 2**40), b"x"),
            whole(pickle.FRAME, struct.pack("<Q", 2**40)),
            whole(pickle.LONG4, struct.pack("<i", 2**31 - 1), b"x"),
        ],
    )
    def test_lengths_beyond_the_file(self, payload: bytes, tmp_path: Path):
        (tmp_path / "net.pkl").write_bytes(payload)
        with pytest.raises(ForeignWeightsError):
            read_edm_pickle(tmp_path / "net.pkl")

    def test_a_huge_memo_index_costs_nothing(self):
        index = struct.pack("<I", 2**32 - 1)
        payload = whole(pickle.NONE, pickle.LONG_BINPUT, index)
        assert read(payload) is None

    @pytest.mark.parametrize("times", [20, 60])
    def test_settings_that_double_again_and_again(self, times: int):
        value: Any = 1
        for _ in range(times):
            value = (value, value)
        with pytest.raises(ForeignWeightsError, match="larger than any network's settings"):
            plain(read(pickle.dumps(value)), "x")

    def test_keys_that_take_forever_to_hash(self):
        value: Any = 1
        for _ in range(60):
            value = (value, value)
        # Without its header and its STOP, inside a dict as a key.
        body = pickle.dumps(value, protocol=2)[2:-1]
        with pytest.raises(ForeignWeightsError, match="a key is a string or a whole number"):
            read(whole(pickle.EMPTY_DICT, body, pickle.NONE, pickle.SETITEM))

    def test_modules_that_hold_themselves(self, tmp_path: Path):
        net = song_unet("ddpmpp")
        own = OrderedDict()
        own["again"] = container = torch.nn.ModuleDict()
        container.__dict__["_modules"] = own
        file = write_edm(tmp_path / "net.pkl", net, _modules=own)
        with pytest.raises(FleetstepError):
            read_edm_pickle(file)

    def test_a_network_far_larger_than_its_file(self, tmp_path: Path):
        net = song_unet("ddpmpp")
        huge = {"model_channels": 16_384, "channel_mult": [64], "channel_mult_emb": 64}
        file = write_edm(tmp_path / "net.pkl", net, arguments=huge, weights=with_filters(net))
        with pytest.raises(ForeignWeightsError):
            read_edm_pickle(file)

    def test_a_storage_is_read_once_for_all_tensors_in_it(self, monkeypatch: pytest.MonkeyPatch):
        reads = []

        def counted(*arguments: Any, **options: Any) -> Any:
            reads.append(1)
            return read_pickle(*arguments, **options)

        monkeypatch.setattr(tensors, "read_pickle", counted)
        storage = self.record(torch.ones(2)).arguments[0]
        # Calls of their own, around the bytes that they share.
        shared = {
            str(i): Record(REBUILD, (Record(storage.name, storage.arguments), 0, (2,), (1,)))
            for i in range(50)
        }
        found = ForeignModule("X", {"_parameters": shared}).tensors()
        assert (len(found), len(reads)) == (50, 5)

    def test_a_storage_of_many_opcodes_is_refused(self):
        nested = Record(self.record(torch.ones(2)).arguments[0].name, (pickle.dumps([0] * 1000),))
        with pytest.raises(ForeignWeightsError, match="more than 1000 opcodes"):
            stored_tensor(Record(REBUILD, (nested, 0, (2,), (1,))), "x", {})

    def test_tensors_that_are_named_again_and_again(self):
        leaf = Record(REBUILD, self.record(torch.ones(2)).arguments)
        inner = self.module(_parameters={str(i): leaf for i in range(400)})
        outer = ForeignModule("X", {"_modules": {str(i): inner for i in range(400)}})
        with pytest.raises(ForeignWeightsError, match="more than 100000 modules and tensors"):
            outer.tensors()

    def test_names_that_grow_with_depth(self):
        inner = self.module()
        for _ in range(20):
            inner = self.module(_modules={"x" * 100: inner})
        with pytest.raises(ForeignWeightsError, match=r"a name of 30\d characters"):
            ForeignModule("X", {"_modules": {"x": inner}}).tensors()

    @pytest.mark.parametrize("shape", [(1 << 100_000,) * 8, "deep"])
    def test_shapes_that_take_forever_to_multiply_or_to_print(self, shape: Any):
        deep: Any = 1
        for _ in range(60):
            deep = (deep, deep)
        shape = (deep,) if shape == "deep" else shape
        nested = self.record(torch.ones(2)).arguments[0]
        record = Record(REBUILD, (nested, 0, shape, (1,) * len(shape)))
        with pytest.raises(ForeignWeightsError, match="a storage of 2 elements") as caught:
            stored_tensor(record, "x", {})
        assert len(str(caught.value)) < 2_000

    def test_numbers_of_many_bits(self):
        assert read(pickle.dumps(2**79)) == 2**79
        with pytest.raises(ForeignWeightsError, match="a whole number of 81 bits"):
            read(pickle.dumps(2**80))
        # All of them would have one hash.
        with pytest.raises(ForeignWeightsError, match="a key of 62 bits"):
            read(pickle.dumps({2**61 - 1 + 2**60: 1}))

    @staticmethod
    def record(tensor: torch.Tensor) -> Record:
        return read(pickle.dumps(tensor))

    @staticmethod
    def module(**attributes: Any) -> Record:
        name = "torch_utils.persistence._reconstruct_persistent_obj"
        return Record(name, ({"type": "class", "class_name": "X", "state": attributes},))
