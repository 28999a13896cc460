"""The evaluation bundle: what is read, what is refused with file and line, how it is fetched."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import random
import threading
import zipfile

import pytest

from harness.evaluation.bundle import Item, Task, read_items, read_suite
from harness.evaluation.download import public_bundle, unpack
from harness.evaluation.prompts import draw_examples, render
from model.config_validation import ConfigError
from tests.harness.evaluation import core_data

CORE_YAML = """icl_tasks:
-
  label: colours
  dataset_uri: world/colours.jsonl
  num_fewshot: [1]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
-
  label: missing
  dataset_uri: world/missing.jsonl
  num_fewshot: [0]
  icl_task_type: language_modeling
"""
GOOD = {"query": "The sky?", "choices": ["blue", "red"], "gold": 0}


def write_bundle(folder, lines=(GOOD, GOOD), core=CORE_YAML):
    (folder / "eval_data" / "world").mkdir(parents=True)
    (folder / "core.yaml").write_text(core)
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\ncolours,62\nmissing,0\n")
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (folder / "eval_data" / "world" / "colours.jsonl").write_text(text)
    return folder


def test_the_suites_have_their_tasks_and_name_the_absent_ones():
    core, extended = (read_suite(core_data.bundle(), name) for name in ("core", "core_extended"))
    assert (core.size, core.absent) == (22, ("coqa",))
    assert (extended.size, len(extended.tasks)) == (46, 43)
    assert extended.absent == ("coqa", "bigbench_elementary_math_qa", "bbq")
    # DCLM's table lists 53 tasks; the five that generate an answer and the two of GPQA are in neither suite.
    left_out = {"triviaqa_sm_sub", "gsm8k_cot", "agi_eval_sat_math_cot", "aqua_cot", "svamp_cot"}
    left_out |= {"gpqa_main", "gpqa_diamond"}
    rows = (core_data.bundle() / "eval_meta_data.csv").read_text().splitlines()[1:]
    listed = {row.split(",")[0] for row in rows}
    assert {task.label for task in extended.tasks} | set(extended.absent) == listed - left_out
    assert all(len(read_items(core_data.bundle(), task)) > 30 for task in core.tasks)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[1]", "not a JSON object"),
        ({**GOOD, "gold": 2}, "gold=2, an index from 0 to 1 is needed"),
        ({**GOOD, "gold": -1}, "gold=-1, an index from 0 to 1 is needed"),
        ({**GOOD, "gold": True}, "gold=True, an index"),
        ({**GOOD, "gold": "0"}, "gold=0, an index"),
        ({"query": "The sky?", "choices": ["blue", "red"]}, "gold=None, an index"),
        ({**GOOD, "choices": ["blue"]}, "1 options, at least 2 are needed"),
        ({**GOOD, "choices": []}, r"choices must be a list of texts, got \[\]"),
        ({**GOOD, "choices": "blue"}, "choices must be a list of texts, got blue"),
        ({**GOOD, "choices": ["blue", 3]}, "choices must be a list of texts"),
        ({**GOOD, "query": None}, "query must be a text, got None"),
        ({**GOOD, "choices": ["blue", " "]}, "choices has an empty text, whose probability is 1"),
        ({**GOOD, "query": "half \ud800"}, r"query has half a surrogate pair, .*: 'half \\ud800'"),
        ('{"query": ' + "[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path, line, reason):
    bundle = write_bundle(tmp_path, [GOOD, GOOD, line])
    (task,) = read_suite(bundle, "colours").tasks
    with pytest.raises(ConfigError, match=rf"world/colours\.jsonl:3: {reason}"):
        read_items(bundle, task)


def test_what_is_no_bundle_or_no_task_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"is no evaluation bundle: it has no core\.yaml"):
        read_suite(tmp_path, "core")
    bundle = write_bundle(tmp_path / "b", [GOOD])
    with pytest.raises(ConfigError, match=r"tasks=colors is unknown \(did you mean colours\?\)"):
        read_suite(bundle, "colors")
    with pytest.raises(ConfigError, match="1 items, colours needs more than its 1 shots"):
        read_items(bundle, read_suite(bundle, "colours").tasks[0])
    outside = CORE_YAML.replace("world/colours", "../../colours")
    with pytest.raises(ConfigError, match="leads out of the bundle"):
        read_suite(write_bundle(tmp_path / "c", core=outside), "core")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("num_fewshot: [1]", "num_fewshot: [-1]", "task colours: num_fewshot=-1, an integer from 0 to 1000"),
        ("num_fewshot: [1]", "num_fewshot: [0.5]", "task colours: num_fewshot=0.5, an integer"),
        ("num_fewshot: [1]", "num_fewshot: []", "core.yaml is no list of tasks"),
        ("label: colours", "label: ../colours", "label='../colours' becomes a folder"),
        ("label: colours", "label: [colours]", "label and continuation_delimiter=.* must be texts"),
        ("icl_tasks:", "icl_task:", r"core\.yaml is no list of tasks: 'icl_tasks'"),
        ("-\n  label: colours", "- " * 3000 + "x", r"core\.yaml is no list of tasks"),
    ],
)
def test_a_bad_list_of_tasks_is_refused(tmp_path, old, new, reason):
    assert old in CORE_YAML
    with pytest.raises(ConfigError, match=reason) as caught:
        read_suite(write_bundle(tmp_path, core=CORE_YAML.replace(old, new)), "core")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("colours,100", "task colours: its random baseline is 100, not from 0 to below 100"),
        ("colours,-1", "its random baseline is -1"),
        ("colours,nan", "its random baseline is nan"),
        ("colours,half", r"eval_meta_data\.csv is no table of baselines \(could not convert string to float"),
    ],
)
def test_a_baseline_that_no_score_can_be_centred_at_is_refused(tmp_path, row, reason):
    bundle = write_bundle(tmp_path)
    (bundle / "eval_meta_data.csv").write_text(f"Eval Task,Random baseline\n{row}\n")
    with pytest.raises(ConfigError, match=reason):
        read_suite(bundle, "core")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    bundle = write_bundle(tmp_path)
    (bundle / "core.yaml").unlink()
    os.mkfifo(bundle / "core.yaml")
    with pytest.raises(ConfigError, match=r"core\.yaml is no regular file"):
        read_suite(bundle, "core")


def test_examples_are_drawn_as_by_the_definition():
    for count, index, shots, seed in [(20, 0, 10, 1234), (20, 19, 10, 1234), (1172, 500, 10, 2345)]:
        others = [i for i in range(count) if i != index]
        expected = random.Random(seed + index).sample(others, shots)
        assert draw_examples(count, index, shots, seed) == expected
    assert draw_examples(5, 2, 0) == []


def test_prompts_read_as_by_the_definition():
    task = Task(label="", file="", kind="multiple_choice", shots=1, delimiter="\nAnswer: ")
    sky, grass = Item(("Sky?",), ("blue", "red")), Item(("Grass?",), ("red", "green"), 1)
    shown = "Grass?\nAnswer: green\n\n"
    assert render(task, sky, [grass]) == [f"{shown}Sky?\nAnswer: blue", f"{shown}Sky?\nAnswer: red"]
    schema = Task(label="", file="", kind="schema", shots=0)
    assert render(schema, Item(("He", "She"), ("ran.",), 1), []) == ["He ran.", "She ran."]
    asked = Task(label="", file="", kind="language_modeling", shots=1)
    item = Item(("2 + 2 =",), ("4",))
    assert render(asked, item, [item]) == ["2 + 2 = 4\n\n2 + 2 =", "2 + 2 = 4\n\n2 + 2 = 4"]


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_a_member_outside_the_folder_is_refused_and_nothing_is_written(tmp_path, name):
    archive = zipped(tmp_path / "b.zip", {"eval_bundle/core.yaml": "", name: "x"})
    with pytest.raises(ConfigError, match=r"b\.zip: member .*evil lies outside its folder: not unpacked"):
        unpack(archive, tmp_path / "in" / "bundle")
    assert [path.name for path in tmp_path.rglob("*")] == ["b.zip"]


def test_what_is_no_zip_or_holds_no_bundle_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(ConfigError, match="is no zip file"):
        unpack(tmp_path / "a.zip", tmp_path / "bundle")
    with pytest.raises(ConfigError, match=r"holds no core\.yaml"):
        unpack(zipped(tmp_path / "b.zip", {"x": "y"}), tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip"]


class Breaking(http.server.BaseHTTPRequestHandler):
    """Sends half of the file, then ends; continues where a range asks it to."""

    content = b""
    asked: list[str | None] = []  # noqa: RUF012

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        rest = self.content[int(wanted.removeprefix("bytes=").rstrip("-")) :] if wanted else self.content
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest if wanted else rest[: len(rest) // 2])

    def log_message(self, *_arguments):
        """Keep the output of the tests clean."""


def test_a_download_continues_and_is_checked(tmp_path):
    archive = zipped(tmp_path / "made.zip", {"eval_bundle/core.yaml": CORE_YAML})
    Breaking.content, Breaking.asked = archive.read_bytes(), []
    half, sha256 = len(Breaking.content) // 2, hashlib.sha256(Breaking.content).hexdigest()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/eval_bundle.zip"
        with pytest.raises(ConnectionError, match=f"broke off after {half} of"):
            public_bundle(tmp_path / "cache", url=url, sha256=sha256)
        folder = public_bundle(tmp_path / "cache", url=url, sha256=sha256)
        assert (folder / "core.yaml").read_text() == CORE_YAML
        assert public_bundle(tmp_path / "cache", url=url, sha256=sha256) == folder
        assert Breaking.asked == [None, f"bytes={half}-"]
        for attempt in (ConnectionError, ConfigError):
            with pytest.raises(attempt, match=r"broke off|it is another bundle, or damaged"):
                public_bundle(tmp_path / "other", url=url, sha256="0" * 64)
        server.shutdown()
    kept = [path.name for path in (tmp_path / "other").iterdir()]
    assert kept == ["eval_bundle.lock"]
    with pytest.raises(ConnectionError, match=r"cannot be fetched .* set bundle=FOLDER"):
        public_bundle(tmp_path / "none", url=url, sha256=sha256)
