"""Rows come out of every form the same, and what is broken is named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lorimer.errors import DataError
from lorimer.tasks._text_rows import read_rows

ROWS = [{"text": 'a "quoted", one', "label": "good"}, {"text": "两\nlines", "label": "bad"}]


def write(form: str, folder: Path) -> Path:
    path = folder / f"data.{form}"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8-sig")
    elif form == "json":
        path.write_text(json.dumps({"version": 1, "data": ROWS}))
    elif form == "yaml":
        path.write_text("\n".join("- " + json.dumps(row) for row in ROWS))
    elif form == "csv":
        path.write_text('text,label\n"a ""quoted"", one",good\n"两\nlines",bad\n', encoding="utf-8")
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("form", ["jsonl", "json", "yaml", "csv", "parquet"])
def test_every_form_gives_the_same_rows(form: str, tmp_path: Path) -> None:
    found = read_rows(str(write(form, tmp_path)))
    assert [dict(row) for row in found.rows] == ROWS
    assert found.source == f"data.{form}" and not found.skipped


@pytest.mark.parametrize("form", ["jsonl", "json", "yaml", "csv", "parquet"])
def test_the_first_rows_alone(form: str, tmp_path: Path) -> None:
    assert [dict(row) for row in read_rows(str(write(form, tmp_path)), limit=1).rows] == ROWS[:1]


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.csv"
    first.write_bytes(b'{"text": "a"}\n{"text": "b"}\n' + b"\n" * 100_000 + b"\xff")
    second.write_text("no,no\n")
    assert [row["text"] for row in read_rows(str(tmp_path), limit=2).rows] == ["a", "b"]
    with pytest.raises(DataError, match="is not UTF-8"):
        read_rows(str(tmp_path))


def test_a_dataset_is_streamed_where_rows_are_limited(tmp_path: Path) -> None:
    _ = pytest.importorskip("datasets")
    from lorimer.tasks._text_rows import _of_hub

    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    limited, every = _of_hub(str(folder), "train", None, 1), _of_hub(str(folder), "train", None, None)
    assert [row["text"] for row in limited.rows] == ["a"] and len(every.rows) == 2


def test_tabs_end_fields_whatever_quotes_there_are(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text('id\ttext\n1\t"so he said\n2\tyes\n')
    assert [row["text"] for row in read_rows(str(path)).rows] == ['"so he said', "yes"]


def test_plain_texts_and_fortunes(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one\n\ntext\n")
    (tmp_path / "several").write_text("\x1b[32mfirst\x1b[m\n%\nsecond\nline\n%\n")
    assert [row["text"] for row in read_rows(str(tmp_path / "one.txt")).rows] == ["one\n\ntext"]
    assert [row["text"] for row in read_rows(str(tmp_path / "several")).rows] == ["first", "second\nline"]


def test_folders_of_files_and_of_labels(tmp_path: Path) -> None:
    files, labels = tmp_path / "files", tmp_path / "labels"
    files.mkdir()
    (files / "a.jsonl").write_text('{"text": "a"}')
    (files / "b.json").write_text('[{"text": "b"}]')
    for label in ("bad", "good"):
        (labels / label).mkdir(parents=True)
        (labels / label / "1.txt").write_text(f"it is {label}")
    assert [row["text"] for row in read_rows(str(files)).rows] == ["a", "b"]
    (labels / "good" / "2.txt").write_text("")
    (labels / "about.md").write_text("")
    found = read_rows(str(labels), by_label=True)
    assert [row["label"] for row in found.rows] == ["bad", "good"]
    assert "1 empty files" in found.skipped[0] and "about.md" in found.skipped[1]
    assert [row["text"] for row in read_rows(str(labels), limit=2).rows] == ["it is bad", "it is good"]


def test_the_first_rows_hold_every_label(tmp_path: Path) -> None:
    for label in ("bad", "good"):
        (tmp_path / label).mkdir()
        for number in range(3):
            (tmp_path / label / f"{number}.txt").write_text("x")
    found = read_rows(str(tmp_path), by_label=True, limit=4)
    assert [row["label"] for row in found.rows] == ["bad", "good"] * 2


def test_labels_of_the_hub_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    asked = []
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *names, **options: asked.append((names, options)) or made
    )
    assert list(read_rows("someone/reviews-2.5").rows) == [
        {"text": "a", "label": "good"},
        {"text": "b", "label": None},
    ]
    assert asked == [(("someone/reviews-2.5", None), {"split": "train", "streaming": False})]


def test_a_single_conversation_is_one_row(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text('{"messages": [{"role": "user", "content": "a"}]}')
    assert list(read_rows(str(path)).rows) == [{"messages": [{"role": "user", "content": "a"}]}]


def test_conversations_in_yaml(tmp_path: Path) -> None:
    path = tmp_path / "talk.yml"
    path.write_text("categories: [x]\nconversations:\n- - hi\n  - hello\n- [a, b, c]\n")
    assert [row["conversation"] for row in read_rows(str(path)).rows] == [["hi", "hello"], ["a", "b", "c"]]


def test_broken_rows_are_told_by_their_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\n{broken\n[1]\n')
    found = read_rows(str(path))
    assert len(found.rows) == 1
    assert "2 rows skipped: line 2 is no JSON" in found.skipped[0] and "line 3 is no map" in found.skipped[0]
    table = tmp_path / "x.csv"
    table.write_text("text,label\na,b\nc\n")
    assert "line 3 has 1 fields and not 2" in read_rows(str(table)).skipped[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"{broken", "holds no row that can be read: line 1 is no JSON"),
        ("x.json", b'{"a": ', "line 1 is no JSON"),
        ("x.csv", b"a,a\n1,2\n", "must name the columns"),
        ("x.txt", b"caf\xe9", "is not UTF-8 text"),
        ("x.docx", b"PK", "no known form of data"),
        ("quote.csv", b'text,label\na,"b\nc,d\n', "quote not closed"),
        ("deep.jsonl", b"[" * 100_000, "line 1 is no JSON"),
        ("half.jsonl", b'{"text": "\\ud83d"}', "line 1 is no JSON"),
        ("x.parquet", b"PAR", "is no Parquet file"),
        ("x.yaml", b"a: [", "is no YAML"),
    ],
)
def test_what_cannot_be_read_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_rows(str(tmp_path / name))


def test_nothing_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file or folder"):
        read_rows(str(tmp_path / "missing.jsonl"))
    with pytest.raises(DataError, match="holds no data"):
        read_rows(str(tmp_path))


def test_reading_a_table_leaves_the_limit_of_fields_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (tmp_path / "long.csv").write_text(f'text,label\n"{"x" * 2 * before}",1\n"short",2\n')
    assert len(read_rows(str(tmp_path / "long.csv")).rows) == 2
    assert csv.field_size_limit() == before
