"""The adapter for lm-evaluation-harness, driven by the real one on a task from a local file."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from harness.data.tokenizer import train_tokenizer
from model.config_validation import ConfigError
from model.depth import counter_seed
from model.published.checkpoint import export_model
from tests.harness.evaluation import core_data

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.filterwarnings("ignore")  # what lm_eval and its dependencies warn of is theirs

if os.environ.get("CI") != "true":
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install -e .[lm_eval]")

TASK = """task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
  cache_dir: {cache}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
num_fewshot: 0
metric_list:
  - metric: acc
"""
ITEMS = [
    {"query": f"{a} lona {b}", "choices": ["ranting", "sero", "muro loning"], "gold": (a + b) % 3}
    for a in range(3)
    for b in range(3)
]


@pytest.fixture
def exported(corpus, tmp_path):
    """An export with its tokenizer, and lm_eval's description of the task beside its local file."""
    model = core_data.model(sequence_length=64, vocabulary_size=300)
    export_model(model, tmp_path / "model")
    tokenizer = train_tokenizer([path.read_text() for path in sorted(corpus.iterdir())], 300)
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    file = tmp_path / "tasks" / "colours.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK.format(file=file, cache=tmp_path / "datasets"))
    return model, tokenizer, tmp_path


def expected(model, tokenizer, text, option, depth):
    """Return the log-probability of an option after a text, from the definition."""
    before, ids = ([0, *tokenizer.encode(part).ids] for part in (text, f"{text} {option}"))
    assert ids[: len(before)] == before
    log_p = torch.log_softmax(
        model.logits(torch.tensor([ids]), [depth], [counter_seed("options", 1234)])[0].double(), dim=-1
    )
    return sum(log_p[i - 1, ids[i]].item() for i in range(len(before), len(ids)))


def test_lm_eval_runs_a_local_task_with_the_same_log_probabilities(exported, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import harness.evaluation.lm_eval_model  # noqa: F401  which registers it

    model, tokenizer, folder = exported
    results = simple_evaluate(
        model="loopscale",
        model_args=f"path={folder / 'model'},depth=3",
        tasks=["colours"],
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
    )
    rows, right = results["samples"]["colours"], 0
    assert len(rows) == len(ITEMS)
    for row in rows:
        item = row["doc"]
        found = [float(answer[0][0]) for answer in row["resps"]]
        wanted = [expected(model, tokenizer, item["query"], option, 3) for option in item["choices"]]
        assert found == pytest.approx(wanted, abs=1e-4)
        right += wanted.index(max(wanted)) == item["gold"]
    assert results["results"]["colours"]["acc,none"] == pytest.approx(right / len(ITEMS))


def test_lm_evals_own_hf_model_scores_an_export_for_transformers_alike(exported, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if os.environ.get("CI") != "true":
        pytest.importorskip("transformers", reason="transformers is not installed")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    import loopscale

    model, tokenizer, folder = exported
    theirs = ["format=transformers", f"checkpoint={folder / 'model'}", f"folder={folder / 'theirs'}"]
    loopscale.export(theirs)
    results = simple_evaluate(
        model="hf",
        model_args=f"pretrained={folder / 'theirs'},depth=3",
        tasks=["colours"],
        task_manager=TaskManager(include_path=str(folder / "tasks"), include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
    )
    for row in results["samples"]["colours"]:
        item = row["doc"]
        found = [float(answer[0][0]) for answer in row["resps"]]
        wanted = [expected(model, tokenizer, item["query"], option, 3) for option in item["choices"]]
        assert found == pytest.approx(wanted, abs=1e-4)


def test_the_module_is_lm_evals_command_line():
    command = [sys.executable, "-m", "harness.evaluation.lm_eval_model", "run", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--model_args" in done.stdout, done.stderr[-2000:]


def test_texts_are_scored_whole_and_continued_greedily(exported, cache):
    from lm_eval.api.instance import Instance

    from harness.evaluation.lm_eval_model import LoopscaleLM

    model, tokenizer, folder = exported
    adapter = LoopscaleLM(path=str(folder / "model"), depth=2, cache=str(cache), device="cpu")
    text = "lona ranting sero " * 3

    def request(kind, *arguments):
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)

    (whole,) = adapter.loglikelihood_rolling([request("loglikelihood_rolling", text)])
    ids = [0, *tokenizer.encode(text).ids]
    assert len(ids) <= 64
    logits = model.logits(torch.tensor([ids]), [2], [counter_seed("options", 1234)])[0].double()
    nats = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum")
    assert whole == pytest.approx(-nats.item(), abs=1e-3)
    ((log_p, greedy),) = adapter.loglikelihood([request("loglikelihood", "lona", "")])
    assert log_p == 0 and greedy
    options = {"until": [], "max_gen_toks": 5}
    (free,) = adapter.generate_until([request("generate_until", "lona ran", options)])
    (again,) = adapter.generate_until([request("generate_until", "lona ran", options)])
    assert free == again and free
    stop = free[len(free) // 2]
    (cut,) = adapter.generate_until([request("generate_until", "lona ran", {**options, "until": [stop]})])
    assert cut == free[: free.index(stop)]
    first = adapter.loglikelihood([request("loglikelihood", "lona ran", free[:1])])
    assert math.isfinite(first[0][0])
    with pytest.raises(ValueError, match="generates greedily"):
        adapter.generate_until([request("generate_until", "lona", {"do_sample": True})])


def test_an_unknown_model_argument_is_refused_and_lm_evals_own_are_not(exported):
    from harness.evaluation.lm_eval_model import LoopscaleLM

    with pytest.raises(ConfigError, match=r"^unknown model argument deph \(did you mean depth\?\)$"):
        LoopscaleLM.create_from_arg_string("path=X,deph=8")
    own = {"batch_size": 4, "max_batch_size": None, "device": "cpu", "trust_remote_code": True}
    made = LoopscaleLM.create_from_arg_obj({"path": str(exported[2] / "model"), "depth": 3}, own)
    assert made.max_length == 64


def greedy(model, ids, new, depth):
    """Continue ids by the definition, the whole sequence anew for every token."""
    ids = list(ids)
    for _ in range(new):
        logits = model.logits(torch.tensor([ids]), [depth], [counter_seed("options", 1234)])[0, -1]
        ids.append(int(logits.argmax()))
    return ids[len(ids) - new :]


def continued(adapter, prompt, new):
    from lm_eval.api.instance import Instance

    options = {"until": [], "max_gen_toks": new}
    request = Instance(request_type="generate_until", doc={}, arguments=(prompt, options), idx=0)
    (text,) = adapter.generate_until([request])
    return text


def test_a_text_ends_where_the_next_document_begins(exported, cache):
    from harness.evaluation.lm_eval_model import LoopscaleLM

    model, tokenizer, folder = exported
    with torch.no_grad():
        model.embedding[0] *= -2  # which makes the first token of documents likely, not certain
    export_model(model, folder / "ending")
    (folder / "model" / "tokenizer.json").rename(folder / "ending" / "tokenizer.json")
    adapter = LoopscaleLM(path=str(folder / "ending"), depth=2, cache=str(cache), device="cpu")
    lengths = set()
    for prompt in ("lona", "lona ranting", "sero muro", "ting rastinglona", "tising"):
        ids = greedy(model, [0, *tokenizer.encode(prompt).ids], 12, 2)
        end = ids.index(0) if 0 in ids else len(ids)
        assert continued(adapter, prompt, 12) == tokenizer.decode(ids[:end])
        lengths.add(end)
    assert any(0 < length < 12 for length in lengths), lengths  # or nothing was tested


@pytest.mark.parametrize(
    ("words", "new", "kept", "generated"),
    [
        (60, 8, 56, 8),  # a long prompt loses its beginning but for the first token
        (4, 1000, None, None),  # a short one is kept whole, and gets what room there is
        (60, 1000, 32, 32),  # and where both are long, each has half of the context
    ],
)
def test_what_outgrows_the_context_is_cut_and_said(exported, cache, words, new, kept, generated):
    from harness.evaluation.lm_eval_model import LoopscaleLM

    model, tokenizer, folder = exported
    adapter = LoopscaleLM(path=str(folder / "model"), depth=2, cache=str(cache), device="cpu")
    prompt = " ".join(["lona", "ranting", "sero"][n % 3] for n in range(words))
    ids = [0, *tokenizer.encode(prompt).ids]
    kept = kept or len(ids)
    assert (len(ids) > 64) == (words == 60)
    wanted = greedy(model, [0, *ids[len(ids) - kept + 1 :]], generated or 64 - kept, 2)
    assert 0 not in wanted
    with pytest.warns(UserWarning, match=f"max_gen_toks={new}: .* the context is 64"):
        text = continued(adapter, prompt, new)
    assert text == tokenizer.decode(wanted)
