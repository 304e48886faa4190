"""Containers are taken apart by their bytes, and never grow past their limit."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from crypto_assets.formats.containers import Content, contents, contents_of, only_member

ROWS = b"1,2,3\n" * 100


def zip_of(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return packed.getvalue()


def tar_of(mode: str, **members: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:  # ty: ignore[no-matching-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_a_plain_or_gzipped_file_is_one_content_with_the_hash_of_the_file(tmp_path: Path, pack) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(pack(ROWS))
    assert list(contents(path)) == [Content("a.csv", ROWS, sha256(path.read_bytes()))]


def test_a_zip_of_one_member_has_the_hash_of_the_zip_as_its_checksum_file_does() -> None:
    zipped = zip_of(inner=ROWS)
    assert list(contents_of(zipped, "a.zip")) == [Content("a.zip/inner", ROWS, sha256(zipped))]


def test_members_of_a_zip_of_several_have_hashes_of_their_own() -> None:
    found = list(contents_of(zip_of(one=ROWS, two=gzip.compress(b"x")), "a.zip"))
    assert [(item.name, item.data) for item in found] == [("a.zip/one", ROWS), ("a.zip/two", b"x")]
    assert found[0].sha256 == sha256(ROWS)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_members_of_a_tar_are_read_whatever_its_name_says(mode: str) -> None:
    packed = tar_of(mode, **{"./d/one.csv": ROWS, "d/two.csv.gz": gzip.compress(b"x", mtime=0)})
    found = list(contents_of(packed, "a"))
    assert [(item.name, item.data) for item in found] == [("a/d/one.csv", ROWS), ("a/d/two.csv.gz", b"x")]
    assert [item.sha256 for item in found] == [sha256(ROWS), sha256(gzip.compress(b"x", mtime=0))]


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(b"0" * 2000),
        zip_of(a=b"0" * 2000),
        tar_of("w:gz", a=b"0" * 2000),
        tar_of("w", a=gzip.compress(b"0" * 2000)),
        b"0" * 2000,
    ],
    ids=["gz", "zip", "tar.gz", "gz in tar", "plain"],
)
def test_a_content_larger_than_agreed_is_refused_however_it_is_packed(packed: bytes) -> None:
    assert len(list(contents_of(packed, "a", largest=2000))) == 1
    with pytest.raises(ValueError, match="more than the 1999 bytes"):
        list(contents_of(packed, "a", largest=1999))


def test_a_zip_that_lies_about_the_size_of_its_member_is_refused() -> None:
    honest = zip_of(a=b"0" * 5000)
    lying = honest.replace((5000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lying != honest
    with pytest.raises(ValueError, match=r"a cannot be unpacked|more than"):
        only_member(lying, "a", largest=100)


@pytest.mark.parametrize(
    "damaged",
    [
        gzip.compress(ROWS * 50)[:-30],
        zip_of(a=ROWS)[:60],
        zip_of(a=ROWS).replace(b"1,2", b"9,9", 1)[:-1],
        tar_of("w:gz", a=ROWS * 500)[:-20],
        tar_of("w", a=ROWS)[:700],
    ],
    ids=["cut gz", "cut zip", "cut directory", "cut tar.gz", "cut tar"],
)
def test_a_damaged_container_is_refused_by_name(damaged: bytes) -> None:
    with pytest.raises(ValueError, match=r"a\.x.*cannot be unpacked"):
        list(contents_of(damaged, "a.x"))


@pytest.mark.parametrize("n_bytes", [1536, 1800, 2100])
def test_members_before_the_damage_of_a_container_are_given(n_bytes: int) -> None:
    packed = tar_of("w", one=ROWS, two=ROWS)
    given = contents_of(packed[:n_bytes], "a.tar")
    assert next(given).name == "a.tar/one"
    with pytest.raises(ValueError, match="cannot be unpacked"):
        next(given)


def test_a_flipped_byte_in_the_member_of_a_zip_is_found_by_its_crc() -> None:
    zipped = bytearray(zip_of(**{"a.csv": bytes(range(256)) * 20}))
    zipped[60] ^= 0xFF
    with pytest.raises(ValueError, match="cannot be unpacked"):
        only_member(bytes(zipped), "a.csv")


@pytest.mark.parametrize("members", [{}, {"b.csv": ROWS}, {"a.csv": ROWS, "b.csv": ROWS}])
def test_a_zip_with_anything_but_the_named_member_is_refused(members: dict[str, bytes]) -> None:
    with pytest.raises(ValueError, match=r"where only a\.csv belongs"):
        only_member(zip_of(**members), "a.csv")
