"""Files appear whole or not at all, errors are typed, and every effect is announced."""

import multiprocessing
from pathlib import Path

import pytest

from featurestore.errors import AlreadyExistsError, NotFoundError, StorageError
from featurestore.storage.files import (
    fsync_folder,
    link_or_copy,
    make_folders,
    observed,
    publish_folder,
    put_if_absent,
    read_file,
    remove_files,
    replace_file,
    write_file,
)


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    put_if_absent(tmp_path / "a", b"one")
    with pytest.raises(AlreadyExistsError):
        put_if_absent(tmp_path / "a", b"two")
    assert read_file(tmp_path / "a") == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def _race(folder: str, number: int, answers: "multiprocessing.Queue[int]") -> None:
    for turn in range(20):
        try:
            put_if_absent(Path(folder) / str(turn), str(number).encode())
        except AlreadyExistsError:
            continue
        answers.put(turn)


def test_of_many_processes_one_wins_each_name(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    workers = [spawn.Process(target=_race, args=(str(tmp_path), n, answers)) for n in range(3)]
    for worker in workers:
        worker.start()
    won = [answers.get(timeout=60) for _ in range(20)]
    for worker in workers:
        worker.join()
    assert sorted(won) == list(range(20))
    assert answers.empty()


def test_a_replacement_is_old_or_new_at_every_step(tmp_path: Path) -> None:
    path = tmp_path / "CURRENT"
    write_file(path, b"old")
    for step in range(1, 8):
        count = 0

        def fail(operation: str, _: str, at: int = step) -> None:
            nonlocal count
            count += 1
            if count == at:
                raise StorageError(f"no {operation}")

        with observed(fail):
            try:
                replace_file(path, b"new")
            except StorageError:
                assert read_file(path) in {b"old", b"new"}
        assert read_file(path) in {b"old", b"new"}
        replace_file(path, b"old")


def test_errors_have_types_and_hints(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_file(tmp_path / "missing")
    write_file(tmp_path / "file", b"")
    with pytest.raises(AlreadyExistsError):
        write_file(tmp_path / "file", b"")
    with pytest.raises((StorageError, AlreadyExistsError)):
        make_folders(tmp_path / "file" / "below")


def test_a_folder_is_published_once(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_folders(tmp_path / name)
        write_file(tmp_path / name / "file", name.encode())
    publish_folder(tmp_path / "one", tmp_path / "v1")
    with pytest.raises(AlreadyExistsError):
        publish_folder(tmp_path / "two", tmp_path / "v1")
    assert read_file(tmp_path / "v1" / "file") == b"one"


def test_every_effect_is_announced_before_it_happens(tmp_path: Path) -> None:
    seen: list[str] = []
    with observed(lambda operation, path: seen.append(f"{operation} {Path(path).name.split('-')[0]}")):
        put_if_absent(tmp_path / "a", b"x")
        link_or_copy(tmp_path / "a", tmp_path / "b")
        fsync_folder(tmp_path)
        assert remove_files([tmp_path / "a", tmp_path / "never"]) == 1
    folder = tmp_path.name.split("-")[0]
    assert seen == [
        "write .tmp",
        "fsync .tmp",
        "link a",
        f"fsync_folder {folder}",
        "link b",
        f"fsync_folder {folder}",
        "remove a",
        "remove never",
    ]
