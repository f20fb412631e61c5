"""Indexes on disk: what the real fast-plaid wrote and found, ColBERTv2's layout, and files that lie."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FilePath
from types import ModuleType

import pytest
import torch
from helpers import ROOT, Path
from test_plaid import Index, assert_close
from torch import Tensor

FIXTURES = ROOT / "tests/plaid"
FAST_PLAID = ["fast_plaid_2bit", "fast_plaid_4bit"]


def back_to_front(packed: Tensor) -> Tensor:
    """Bytes as other libraries pack them."""
    bits = packed[..., None] >> torch.arange(8) & 1
    return (bits << torch.arange(7, -1, -1)).sum(-1).to(torch.uint8)


def write_npy(path: FilePath, tensor: Tensor, descr: str) -> None:
    header = repr({"descr": descr, "fortran_order": False, "shape": tuple(tensor.shape)}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(tensor.numpy().tobytes()))


def chunks_of(index: Index, sizes: list[int]) -> list[tuple[Tensor, Tensor, list[int]]]:
    """Codes, residuals as they are stored, and lengths of each chunk of documents."""
    codes, residuals, offsets, *_ = index.packed
    out, first = [], 0
    for size in sizes:
        begin, end = int(offsets[first]), int(offsets[first + size])
        lengths = index.lengths[first : first + size].tolist()
        out.append((codes[begin:end], back_to_front(residuals[begin:end]), lengths))
        first += size
    return out


def write_stanford(path: FilePath, index: Index, sizes: list[int]) -> None:
    """The layout of colbert.indexing: torch files for each chunk, tuples for buckets and the inverted list."""
    path.mkdir()
    for i, (codes, residuals, lengths) in enumerate(chunks_of(index, sizes)):
        torch.save(codes.int(), path / f"{i}.codes.pt")
        torch.save(residuals, path / f"{i}.residuals.pt")
        (path / f"doclens.{i}.json").write_text(json.dumps(lengths))
    torch.save(index.centroids.half(), path / "centroids.pt")
    torch.save((torch.zeros(2**index.nbits - 1), index.weights), path / "buckets.pt")
    torch.save(torch.tensor(0.1), path / "avg_residual.pt")
    metadata = {"config": {"nbits": index.nbits, "dim": index.centroids.shape[1]}, "num_chunks": len(sizes)}
    (path / "metadata.json").write_text(json.dumps(metadata))


def write_fast_plaid(path: FilePath, index: Index, sizes: list[int], merged: bool) -> None:
    """The layout of fast-plaid, before or after its chunks were merged into one file with padding behind."""
    path.mkdir()
    parts = chunks_of(index, sizes)
    for i, (codes, residuals, lengths) in enumerate(parts):
        (path / f"doclens.{i}.json").write_text(json.dumps(lengths))
        if not merged:
            write_npy(path / f"{i}.codes.npy", codes.long(), "<i8")
            write_npy(path / f"{i}.residuals.npy", residuals, "|u1")
    if merged:
        codes, residuals = (torch.cat([part[k] for part in parts]) for k in (0, 1))
        write_npy(path / "merged_codes.npy", torch.cat([codes, codes[:2] * 0]).long(), "<i8")
        write_npy(path / "merged_residuals.npy", torch.cat([residuals, residuals[:2] * 0]), "|u1")
    write_npy(path / "centroids.npy", index.centroids.half(), "<f2")
    write_npy(path / "bucket_weights.npy", index.weights.half(), "<f2")
    (path / "metadata.json").write_text(json.dumps({"nbits": index.nbits, "num_chunks": len(sizes)}))


WRITERS: dict[str, Callable[[FilePath, Index], None]] = {
    "stanford": lambda path, index: write_stanford(path, index, [3, 1]),
    "fast_plaid": lambda path, index: write_fast_plaid(path, index, [1, 3], merged=False),
    "fast_plaid_merged": lambda path, index: write_fast_plaid(path, index, [2, 2], merged=True),
}


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("layout", WRITERS)
def test_every_layout_scores_as_its_documents(
    maxsim: ModuleType, path: Path, tmp_path: FilePath, layout: str, nbits: int
) -> None:
    index = Index.random(nbits, 32, torch.float16)
    index.weights = index.weights.half().float()
    WRITERS[layout](tmp_path / "index", index)
    loaded = maxsim.plaid.load_index(tmp_path / "index", path.device)
    assert len(loaded) == 4 and loaded.device.type == path.device
    assert_close(loaded.score(index.queries.to(path.device)), index, True, 2e-4)


@pytest.mark.parametrize("name", FAST_PLAID)
def test_search_finds_what_fast_plaid_finds(maxsim: ModuleType, path: Path, name: str) -> None:
    expected = json.loads((FIXTURES / f"{name}.json").read_text())
    index = maxsim.plaid.load_index(FIXTURES / name, path.device)
    queries = torch.tensor(expected["queries"], dtype=torch.float16, device=path.device)
    scores, ids = index.search(queries, **expected["options"])
    for got_scores, got_ids, ranking in zip(scores.tolist(), ids.tolist(), expected["found"], strict=True):
        theirs = dict(ranking)
        assert len(ranking) == len(got_ids)
        for score, document in zip(got_scores, got_ids, strict=True):  # theirs are rounded to float16
            assert abs(score - theirs[document]) <= 4e-3 * abs(score)


@pytest.mark.parametrize("name", FAST_PLAID)
def test_a_search_that_probes_everything_is_exact(maxsim: ModuleType, path: Path, name: str) -> None:
    index = maxsim.plaid.load_index(FIXTURES / name, path.device)
    queries = torch.randn(3, 9, 32, device=path.device)
    exhaustive = maxsim.plaid.maxsim_residual_varlen(
        torch.nn.functional.normalize(queries, dim=-1),
        index.codes,
        index.residuals,
        index.offsets,
        index.centroids,
        index.bucket_weights,
        index.nbits,
    )
    unit = torch.nn.functional.normalize(queries, dim=-1)
    scores, ids = index.search(unit, len(index), n_full_scores=4 * len(index), n_ivf_probe=len(index.centroids))
    best, order = exhaustive.sort(descending=True)
    torch.testing.assert_close(scores, best, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(exhaustive.gather(1, ids), best, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_one_op_searches_as_a_row_of_ops_does(
    maxsim: ModuleType, path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents of any length, some of them empty, and more of them than one block ranks; padding in a query."""
    if path.device == "cpu":
        pytest.skip("the row of ops is what runs here")
    torch.manual_seed(3)
    lengths = tuple(torch.randint(0, 40, (6000,)).tolist())
    for dim, tokens, nbits in ((128, 32, 4), (40, 7, 2)):
        index = Index.random(nbits, dim, dtype, path.device, (3, tokens), lengths, centroids=500)
        index.queries[1, tokens // 2 :] = 0
        prepared = maxsim.plaid.prepare_index(*index.packed)
        found = []
        for devices in (frozenset(["cuda"]), frozenset()):
            prepared.search(index.queries, 1)  # which loads the module
            monkeypatch.setattr(sys.modules[f"{maxsim.__name__}.plaid.search"], "_SEARCH_DEVICES", devices)
            found.append(prepared.search(index.queries, 9, n_full_scores=400, n_ivf_probe=2))
        (scores, ids), (expected, theirs) = found
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
        assert (ids == theirs).float().mean() > 0.9  # equal scores may change places


def test_search_returns_what_there_is(maxsim: ModuleType, path: Path) -> None:
    index = maxsim.plaid.load_index(FIXTURES / FAST_PLAID[0], path.device)
    query = torch.nn.functional.normalize(torch.randn(4, 32, device=path.device), dim=-1)
    scores, ids = index.search(query, 80, n_ivf_probe=1)
    found = ids >= 0
    assert 0 < found.sum() < 80 and (scores[~found] == float("-inf")).all() and (ids[~found] == -1).all()
    padded = torch.cat([query, query.new_zeros(3, 32)])
    again = index.search(padded, 80, n_ivf_probe=1)
    assert torch.equal(again[1], ids)
    assert index.search(query, 5, n_full_scores=8)[0].shape == (2,)
    empty = index.search(query[None][:0], 5)
    assert empty[0].shape[0] == 0
    alone = index.search(query[:0], 5)
    assert alone[1].numel() == 0


def test_preparing_changes_no_score(maxsim: ModuleType, path: Path) -> None:
    for dim, nbits in ((128, 2), (64, 4), (40, 8), (36, 1)):
        index = Index.random(nbits, dim, torch.float16, path.device, (3, 40), (70, 1, 0, 200, 33))
        prepared = maxsim.plaid.prepare_index(*index.packed)
        assert_close(prepared.score(index.queries), index, True, 2e-4)
        one = prepared.score(index.queries[1])
        torch.testing.assert_close(one, prepared.score(index.queries)[1], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_scores_by_id_are_those_of_all_documents(maxsim: ModuleType, path: Path, dtype: torch.dtype) -> None:
    for dim, nbits in ((128, 2), (40, 8)):
        index = Index.random(nbits, dim, torch.float16, path.device, (3, 40), (70, 1, 0, 200, 33))
        prepared = maxsim.plaid.prepare_index(*index.packed)
        ids = torch.tensor([[4, -1, 2, 0], [3, 3, -1, 1], [-1, -1, 0, 2]], device=path.device, dtype=dtype)
        got = prepared.score_ids(index.queries, ids, empty_score=-5.0, missing_score=-7.0)
        want = prepared.score(index.queries, empty_score=-5.0).gather(1, ids.long().clamp_min(0))
        torch.testing.assert_close(got, want.masked_fill(ids < 0, -7.0), rtol=2e-4, atol=2e-4)
        assert not prepared.score_ids(index.queries.requires_grad_(), ids).requires_grad
        assert prepared.score_ids(index.queries[:0], ids[:0]).shape == (0, 4)
        with pytest.raises(ValueError, match=r"ids must be in \[0, 5\); got ids\[0\]=5"):
            prepared.score_ids(index.queries, ids + 1, validate=True)
        with pytest.raises(ValueError, match=r"ids must be \[Nq, K\] with Nq = 3; got \(2, 4\)"):
            prepared.score_ids(index.queries, ids[:2])
        with pytest.raises(ValueError, match=r"Q must be \[Nq, Lq, d\]"):
            prepared.score_ids(index.queries[0], ids)


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_prepared_documents_begin_anywhere(maxsim: ModuleType, path: Path, nbits: int) -> None:
    """More tokens than centroids, and documents that begin and end at every row of 16, or are many in one."""
    lengths = (0, 1, 2, 0, 700, 3, 16, 15, 17, 0, 5, 4, 1, 1, 1, 129, 31, 33, 47, 0)
    for queries in ((1, 32), (3, 7)):
        index = Index.random(nbits, 128, torch.float16, path.device, queries, lengths, seed=queries[1])
        prepared = maxsim.plaid.prepare_index(*index.packed)
        assert_close(prepared.score(index.queries, empty_score=-3.0), index, True, 2e-4, empty_score=-3.0)


def test_prepared_documents_whose_centroids_or_weights_are_of_any_length(maxsim: ModuleType, path: Path) -> None:
    for centroids, weights in ((1.0, 10.0), (100.0, 1.0), (1e-3, 1.0), (3.0, 0.01), (0.02, 0.02)):
        index = Index.random(2, 128, torch.float16, path.device, (1, 32), (300, 41, 7))
        index.centroids.mul_(centroids)
        index.weights.mul_(weights)
        assert_close(maxsim.plaid.prepare_index(*index.packed).score(index.queries), index, True, 2e-4)


def test_a_prepared_index_that_was_spoiled(maxsim: ModuleType, path: Path) -> None:
    index = Index.random(2, 128, torch.float16, path.device, (2, 32), (90, 20, 70, 33))
    prepared = maxsim.plaid.prepare_index(*index.packed)
    scores = prepared.score(index.queries)
    nan = index.queries.clone()
    nan[1, 3, 5] = torch.nan
    spoiled = prepared.score(nan)
    assert spoiled[1].isnan().all() and torch.equal(spoiled[0], scores[0])
    if path.device == "cpu":  # where the op checks codes and offsets
        return
    for code in (-1, 40, 2**15 - 1):
        codes = prepared.codes.clone()
        codes[95] = code
        spoiled = replace(prepared, codes=codes).score(index.queries)
        assert spoiled[:, 1].isnan().all() and torch.equal(spoiled[:, [0, 2, 3]], scores[:, [0, 2, 3]])
    for place, row in ((1, 200), (4, 1 << 30), (2, -7), (0, 100)):
        offsets = prepared.offsets.clone()
        offsets[place] = row
        assert replace(prepared, offsets=offsets).score(index.queries).isnan().any(1).all()


def fixture(tmp_path: FilePath) -> FilePath:
    return FilePath(shutil.copytree(FIXTURES / FAST_PLAID[1], tmp_path / "index"))


def edit_json(file: str, change: Callable[[object], object]) -> Callable[[FilePath], None]:
    def edit(path: FilePath) -> None:
        (path / file).write_text(json.dumps(change(json.loads((path / file).read_text()))))

    return edit


def cut(file: str, size: int) -> Callable[[FilePath], None]:
    return lambda path: (path / file).write_bytes((path / file).read_bytes()[:size])


BAD = [
    (cut("merged_codes.npy", 300), ValueError, r"merged_codes.npy is truncated"),
    (cut("merged_residuals.npy", 100), ValueError, r"merged_residuals.npy is truncated"),
    (cut("centroids.npy", 5), ValueError, r"centroids.npy is no .npy file"),
    (cut("metadata.json", 20), ValueError, r"metadata.json is no JSON file"),
    (lambda path: (path / "doclens.0.json").unlink(), FileNotFoundError, r"doclens.0.json is missing"),
    (lambda path: (path / "bucket_weights.npy").unlink(), FileNotFoundError, r"bucket_weights.npy is missing"),
    (edit_json("metadata.json", lambda m: {**m, "nbits": 3}), ValueError, r"nbits must be one of 1, 2, 4, 8; got 3"),
    (edit_json("metadata.json", lambda m: {**m, "nbits": 2}), ValueError, r"bucket weights must be .* = \[4\]"),
    (edit_json("metadata.json", lambda m: {**m, "num_chunks": 2}), FileNotFoundError, r"doclens.1.json is missing"),
    (edit_json("metadata.json", lambda m: {**m, "num_chunks": -1}), ValueError, r"num_chunks as a whole number"),
    (edit_json("doclens.0.json", lambda n: [*n, 5000]), ValueError, r"merged_codes.npy must have at least"),
    (edit_json("doclens.0.json", lambda n: [-1, *n]), ValueError, r"doclens.0.json must be a list of document lengths"),
    (edit_json("doclens.0.json", lambda n: {"a": n}), ValueError, r"doclens.0.json must be a list"),
]


@pytest.mark.parametrize(("damage", "kind", "message"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_damaged_index_is_one_clear_error(
    maxsim: ModuleType, tmp_path: FilePath, damage: Callable, kind: type, message: str
) -> None:
    path = fixture(tmp_path)
    damage(path)
    with pytest.raises(kind, match=message):
        maxsim.plaid.load_index(path)


def test_codes_that_name_no_centroid(maxsim: ModuleType, tmp_path: FilePath) -> None:
    index = Index.random(2, 32, torch.float16)
    index.codes[3, 2] = 40
    WRITERS["stanford"](tmp_path / "index", index)
    with pytest.raises(ValueError, match=r"codes must be in \[0, 40\), the number of centroids; got 40 at 73"):
        maxsim.plaid.load_index(tmp_path / "index")


def test_lengths_that_do_not_add_up(maxsim: ModuleType, tmp_path: FilePath) -> None:
    index = Index.random(2, 32, torch.float16)
    WRITERS["fast_plaid"](tmp_path / "index", index)
    (tmp_path / "index/doclens.1.json").write_text("[1, 0, 32]")
    with pytest.raises(ValueError, match=r"codes must have 103 rows, the sum of all document lengths; got 104"):
        maxsim.plaid.load_index(tmp_path / "index")


class Payload:
    """What a hostile file would run."""

    def __reduce__(self) -> tuple:
        return (print, ("executed",))


@pytest.mark.parametrize("content", ["code", "cut", "text", "empty"])
def test_torch_files_are_read_as_data(
    maxsim: ModuleType, tmp_path: FilePath, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "index"
    WRITERS["stanford"](path, Index.random(2, 32, torch.float16))
    file = path / "buckets.pt"
    if content == "code":
        torch.save(Payload(), file)
    else:
        file.write_bytes({"cut": file.read_bytes()[:200], "text": b"hello", "empty": b""}[content])
    with pytest.raises(ValueError, match="buckets.pt is truncated, or no file of tensors"):
        maxsim.plaid.load_index(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("descr", ["|O", ">i8", "<c8", [("a", "<i4")]], ids=str)
def test_numpy_files_hold_plain_numbers(maxsim: ModuleType, tmp_path: FilePath, descr: object) -> None:
    path = fixture(tmp_path)
    header = repr({"descr": descr, "fortran_order": False, "shape": (2, 2)}).encode() + b"\n"
    (path / "centroids.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    with pytest.raises(ValueError, match="centroids.npy must hold plain little-endian numbers"):
        maxsim.plaid.load_index(path)


def test_no_index_at_all(maxsim: ModuleType, tmp_path: FilePath) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither centroids.npy \(fast-plaid\) nor centroids.pt \(ColBERT\)"):
        maxsim.plaid.load_index(tmp_path)


@pytest.mark.parametrize("change", [{"top_k": 0}, {"n_ivf_probe": -1}, {"n_full_scores": 0}], ids=str)
def test_search_options(maxsim: ModuleType, change: dict) -> None:
    index = maxsim.plaid.load_index(FIXTURES / FAST_PLAID[0])
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be at least 1"):
        index.search(torch.zeros(2, 32), **change)
    with pytest.raises(ValueError, match="must share the embedding dim"):
        index.search(torch.zeros(2, 31))
