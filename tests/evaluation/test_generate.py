"""Generation against transformers: the same tokens when greedy, the same distributions when sampling."""

import json
import shutil

import pytest
import torch
import transformers

from nanomed import hub
from nanomed.errors import UserError
from nanomed.evaluation import writing
from nanomed.evaluation.cuda_graph import RecordedStep
from nanomed.evaluation.generate import Ending, Sampling, generate, in_batches, row_seed, stream
from nanomed.evaluation.generation_config import NEUTRAL, NEUTRAL_DRAWN
from nanomed.evaluation.next_token import choose, distribution
from nanomed.evaluation.writing import in_order
from nanomed.models.attention import CAUSAL, Mask
from nanomed.models.cache import Kept, make_cache
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import assert_near, make_hf_model

CPU, GREEDY = torch.device("cpu"), Sampling()
PROMPTS = [[5, 17, 33], [250], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [301, 2], [44] * 20]


# BioMedLM scales attention by layer; GPT-Neo's window is shorter than what is written, and so are the second
# Llama's and Gemma's.
KINDS = {
    "gpt2": ("gpt2", {}),
    "biomedlm": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True}),
    "gpt_neo": ("gpt_neo", {}),
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "gemma3_text": ("gemma3_text", {}),
}
every_kind = pytest.mark.parametrize("name", KINDS)


@pytest.fixture(scope="module")
def models(tmp_path_factory, bpe_dir):
    """{kind: (ours, transformers')}."""
    out = {}
    for name, (family, flags) in KINDS.items():
        directory = tmp_path_factory.mktemp(name)
        theirs = make_hf_model(directory, bpe_dir, family=family, **flags)
        out[name] = hub.load_model(hub.find(str(directory))).eval(), theirs
    return out


@pytest.fixture(scope="module")
def tok(bpe_dir):
    return load_tokenizer(bpe_dir)


def run(model, tok, prompts, n, sampling=GREEDY, markers=(), **kwargs):
    return generate(model, prompts, n, sampling, Ending(tok, markers), CPU, "fp32", **kwargs)


def greedy_of_transformers(model, prompts, n, **flags):
    T = max(map(len, prompts))
    idx = torch.tensor([[0] * (T - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts])
    with torch.no_grad():
        out = model.generate(
            idx, attention_mask=mask, max_new_tokens=n, do_sample=False, pad_token_id=0, **flags
        )
    rows = [row[T:].tolist() for row in out]
    return [row[: row.index(0)] if 0 in row else row for row in rows]  # 0 is <|endoftext|>


@every_kind
def test_greedy_tokens_are_those_of_transformers(models, tok, name):
    ours, theirs = models[name]
    for prompt in PROMPTS:  # one by one, to the last position
        n = 64 - len(prompt)
        assert run(ours, tok, [prompt], n)[0].ids == greedy_of_transformers(theirs, [prompt], n)[0]
    n = 64 - 20
    batched = run(ours, tok, PROMPTS, n, batch_size=len(PROMPTS))  # padded on the left
    assert [c.ids for c in batched] == greedy_of_transformers(theirs, PROMPTS, n)
    assert [c.ids for c in run(ours, tok, PROMPTS, n, batch_size=2)] == [c.ids for c in batched]
    assert any(len(c.ids) == n for c in batched)  # some row really went to the limit


@every_kind
def test_repetition_penalty_is_that_of_transformers(models, tok, name):
    ours, theirs = models[name]
    for prompt in PROMPTS:
        mine = run(ours, tok, [prompt], 30, Sampling(repetition_penalty=1.7))[0].ids
        assert mine == greedy_of_transformers(theirs, [prompt], 30, repetition_penalty=1.7)[0]
        assert mine != run(ours, tok, [prompt], 30)[0].ids


@every_kind
@pytest.mark.parametrize("padded", [False, True])
def test_cached_logits_equal_uncached_ones(models, padded, name):
    model = models[name][0]
    T = 20  # more than the windows
    idx = torch.randint(0, 400, (2, T), generator=torch.Generator().manual_seed(3))
    real = torch.ones(2, T, dtype=torch.bool)
    if padded:
        real[1, :5] = False
    pos = (real.long().cumsum(1) - 1).clamp(min=0)
    mask = torch.ones(T, T, dtype=torch.bool).tril() & real[:, None, None, :] | torch.eye(T, dtype=torch.bool)
    with torch.no_grad():
        whole = model.backbone(idx, pos, Mask(mask))
        cache = make_cache(model.config, 2, T, CPU, torch.float32)
        steps = ((0, 7), (7, 10), (10, 11), (11, 18), (18, 19), (19, T))
        parts = [model.backbone(idx[:, a:b], pos[:, a:b], Mask(mask[:, :, a:b, :b]), cache) for a, b in steps]
    assert_near(torch.cat(parts, 1)[real], whole[real])


@every_kind
def test_a_step_whose_shapes_stay_gives_the_same_logits(models, name):
    """What is recorded on a GPU, not recorded."""
    model, _ = models[name]
    B, T, steps = 2, 6, 12
    idx = torch.randint(1, 400, (B, T + steps), generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[True] * T, [False, False] + [True] * (T - 2)])
    pos = (torch.cat([real, real.new_ones(B, steps)], 1).long().cumsum(1) - 1).clamp(min=0)

    def logits_with(cache):
        return lambda idx, pos, mask: model.lm_head(model.backbone(idx, pos, mask, cache)[:, -1])

    growing, whole = (make_cache(model.config, B, T + steps + 3, CPU, torch.float32) for _ in range(2))
    for layer in whole:
        layer.k.fill_(torch.nan), layer.v.fill_(torch.nan)
    prompt = (real[:, None, :] & torch.ones(T, T, dtype=torch.bool).tril() | torch.eye(T, dtype=torch.bool))[
        :, None
    ]
    with torch.no_grad():
        for cache in (growing, whole):
            logits_with(cache)(idx[:, :T], pos[:, :T], Mask(prompt))
        step = RecordedStep(logits_with(whole), whole, real, pos[:, T : T + 1], model.config.n_positions - 1)
        for k in range(T, T + steps):
            real = torch.cat([real, real.new_ones(B, 1)], 1)
            expected = logits_with(growing)(idx[:, k : k + 1], pos[:, k : k + 1], Mask(real[:, None, None]))
            step.idx.copy_(idx[:, k : k + 1])
            assert_near(step._step(), expected)


@every_kind
def test_several_tokens_after_others_need_a_mask(models, name):
    model = models[name][0]
    cache = make_cache(model.config, 1, 8, CPU, torch.float32)
    model.backbone(torch.tensor([[1, 2, 3]]), cache=cache)
    with pytest.raises(ValueError, match="mask"):
        model.backbone(torch.tensor([[4, 5]]), torch.tensor([[3, 4]]), cache=cache)


# How the prompt of each turn begins: with all that was read and written, with a part of it where a template
# rewrites an earlier turn or the oldest one is forgotten, with nothing of it; and the same prompt once more.
TURNS = ((None, 5), (None, 1), (9, 4), (None, 7), (0, 20), (None, 0), (None, 9))


@every_kind
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(repetition_penalty=1.7), Sampling(temperature=1.0)])
def test_a_kept_cache_changes_no_token_and_only_the_new_ones_are_read(models, name, sampling, monkeypatch):
    model, g = models[name][0], torch.Generator().manual_seed(0)
    kept, known, read = Kept(model.config, 1, CPU, torch.float32), [], []

    def written(prompt, kept=None):
        how = (4, sampling, [7], CPU, "fp32")
        return [token for (token,) in stream(model, [prompt], *how, kept)]

    forward = model.backbone.forward
    for n, new in TURNS:
        known = known[:n]
        prompt = known + torch.randint(1, 400, (new,), generator=g).tolist()
        anew = written(prompt)
        with monkeypatch.context() as m:
            m.setattr(model.backbone, "forward", lambda idx, *a: read.append(idx.size(1)) or forward(idx, *a))
            assert written(prompt, kept) == anew
        # the last token that was written is not read before the next turn, and one is read at least
        assert read == [max(new + (n is None and len(known) > 0), 1), 1, 1, 1]
        known, read[:] = prompt + anew, []


@every_kind
def test_a_cache_of_recorded_steps_is_kept_too(models, name):
    """As after a turn on a GPU: what was written while all shapes stayed, the next turn finds."""
    model, kept = models[name][0], Kept(models[name][0].config, 1, CPU, torch.float32)
    first, written = [5, 6, 7, 8], torch.tensor([[9], [10], [11]])
    next(stream(model, [first], 4, GREEDY, [7], CPU, "fp32", kept))
    real, pos = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[4]])
    read = lambda idx, pos, mask: model.backbone(idx, pos, mask, kept.cache)  # noqa: E731
    step = RecordedStep(read, kept.cache, real, pos, 63)
    with torch.no_grad():
        for token in written:
            step.idx.copy_(token[None])
            step._step()
    kept.ids += written.flatten().tolist()
    prompt = [*kept.ids, 12, 13]
    how = (4, GREEDY, [7], CPU, "fp32")
    assert list(stream(model, [prompt], *how, kept)) == list(stream(model, [prompt], *how))
    assert kept.ids[:9] == prompt


def test_a_cache_survives_a_turn_that_is_broken_off(models):
    model = models["llama"][0]
    kept, first = Kept(model.config, 1, CPU, torch.float32), [5, 6, 7, 8]
    how = (4, GREEDY, [7], CPU, "fp32")
    next(stream(model, [first], *how, kept))
    with pytest.raises(IndexError):  # in the midst of the model, some of whose layers have kept something
        next(stream(model, [[*first, 9, 100_000]], *how, kept))
    layer = model.model.layers[1]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(layer, "forward", lambda *a: pytest.fail("broken off"))
        with pytest.raises(pytest.fail.Exception):
            next(stream(model, [[*first, 9, 10]], *how, kept))
    prompt = [*first, 9, 10, 11]
    assert list(stream(model, [prompt], *how, kept)) == list(stream(model, [prompt], *how))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.6},
        {"temperature": 0.8, "top_k": 12, "top_p": 0.8},
        {"temperature": 1.0, "top_p": 1e-9},
    ],
)
def test_distributions_are_those_of_transformers(settings):
    torch.manual_seed(0)
    logits = torch.randn(4, 50) * 2
    warpers = [transformers.TemperatureLogitsWarper(settings["temperature"])]
    if settings.get("top_k"):
        warpers.append(transformers.TopKLogitsWarper(settings["top_k"]))
    if settings.get("top_p"):
        warpers.append(transformers.TopPLogitsWarper(settings["top_p"]))
    theirs = logits
    for warper in warpers:
        theirs = warper(None, theirs)
    ours = distribution(logits, Sampling(**settings))
    assert_near(ours.float(), theirs.softmax(-1))


def test_draws_follow_the_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -30.0]])
    sampling = Sampling(temperature=1.0, top_k=3)
    n = 20_000
    generators = [torch.Generator().manual_seed(s) for s in range(n)]
    drawn = choose(logits.expand(n, -1), sampling, torch.zeros(n, 5, dtype=torch.bool), generators).bincount(
        minlength=5
    )
    p = distribution(logits, sampling)[0]
    error = (p * (1 - p) / n).sqrt()
    assert ((drawn / n - p).abs() <= 4 * error + 1e-12).all(), (
        drawn / n,
        p,
    )  # four standard errors; 0 stays 0


@every_kind
def test_a_seed_reproduces_whatever_the_batch(models, tok, name):
    model, sampling = models[name][0], Sampling(temperature=1.0)
    first = run(model, tok, PROMPTS, 20, sampling, seed=7, batch_size=5)
    assert first == run(model, tok, PROMPTS, 20, sampling, seed=7, batch_size=2)
    assert first != run(model, tok, PROMPTS, 20, sampling, seed=8, batch_size=5)
    same = run(model, tok, [PROMPTS[0]] * 2, 20, sampling, seed=7)
    assert same[0] != same[1]  # two prompts that are equal do not get the same answer


def test_ends_at_end_of_text_and_at_markers(models, tok):
    model = models["gpt2"][0]
    whole = run(model, tok, [PROMPTS[0]], 40)[0]
    assert not whole.stopped and len(whole.ids) == 40
    marker = whole.text[len(whole.text) // 2 :][:6]
    cut = run(model, tok, [PROMPTS[0]], 40, markers=[marker, "no such thing"])[0]
    assert cut.stopped and cut.text == whole.text[: whole.text.index(marker)] and len(cut.ids) < 40
    ending = Ending(tok, ["###"])
    over = ending.completion([*tok.encode("Yes.").tolist(), tok.eos], last=False)
    assert (over.text, over.stopped) == ("Yes.", True) and tok.eos not in over.ids
    assert ending.completion(tok.encode("Yes.").tolist(), last=False) is None
    assert not ending.completion(tok.encode("Yes.").tolist(), last=True).stopped
    assert ending.printable(tok.encode("Yes. ##").tolist()) == "Yes. "
    assert ending.printable(tok.encode("字")[:1].tolist()) == ""  # half a character


def test_stops_early_once_all_rows_are_done(models, tok, monkeypatch):
    model = models["gpt2"][0]
    marker = run(model, tok, [PROMPTS[0]], 40)[0].text[:1]
    calls = []
    monkeypatch.setattr(
        model.transformer, "forward", lambda *a, f=model.transformer.forward: calls.append(1) or f(*a)
    )
    run(model, tok, [PROMPTS[0]], 40, markers=[marker])
    assert len(calls) < 5


def test_beyond_the_context_is_an_error(models, tok):
    model = models["gpt2"][0]
    assert len(run(model, tok, [[5] * 60], None)[0].ids) <= 4  # without a wish, what is left
    with pytest.raises(UserError, match="60 tokens and 5 new ones does not fit the model's 64 positions"):
        run(model, tok, [[5] * 60], 5)
    with pytest.raises(UserError, match="64 positions"):
        run(model, tok, [[5] * 64], None)
    with pytest.raises(UserError, match="empty prompt"):
        run(model, tok, [[]], 5)


def test_a_long_neighbour_leaves_the_others_their_room(models, tok):
    model = models["gpt2"][0]
    alone = run(model, tok, [PROMPTS[0]], None)[0]
    together = run(model, tok, [PROMPTS[0], [5] * 60], None)
    assert len(alone.ids) > 30 and together[0] == alone and len(together[1].ids) <= 4


# --- a batch whose rows come and go ---


@pytest.fixture
def restless(monkeypatch):
    """Everything happens often: beginnings are shared, columns move; and no memory is clean."""
    monkeypatch.setattr(writing, "DRIFT", 3)
    monkeypatch.setattr(writing, "FORWARD", 2)

    def dirty(*args):
        cache = make_cache(*args)
        for layer in cache:
            layer.k.fill_(torch.nan), layer.v.fill_(torch.nan)
        return cache

    monkeypatch.setattr(writing, "make_cache", dirty)


def many_prompts(n=16):
    """Of one to 30 tokens, behind nothing, one of two instructions, or that and a passage; one comes twice."""
    g = torch.Generator().manual_seed(0)
    ids = lambda size: torch.randint(1, 400, (size,), generator=g).tolist()  # noqa: E731
    ask, tell = ids(6), ids(9)
    begins = [], ask, tell, ask + ids(5)
    prompts = [begins[k % 4] + ids(int(torch.randint(1, 16, (), generator=g))) for k in range(n - 1)]
    return [*prompts, prompts[1]]


def alone(model, tok, prompts, rooms, sampling, markers, seed=0):
    """Each by itself."""
    ending, out = Ending(tok, markers), []
    for k, (prompt, steps) in enumerate(zip(prompts, rooms, strict=False)):
        ids, how = [], (sampling, [row_seed(seed, k)], CPU, "fp32")
        for (token,) in stream(model, [prompt], steps, *how):
            ids.append(token)
            if done := ending.completion(ids, last=len(ids) == steps):
                break
        out.append(done)
    return out


@every_kind
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(repetition_penalty=1.3, temperature=1.0, top_k=50)])
def test_rows_that_come_and_go_are_written_as_each_alone(models, tok, name, sampling, restless):
    model, prompts = models[name][0], many_prompts()
    rooms = [64 - len(p) if k == 4 else 1 + 7 * k % 13 for k, p in enumerate(prompts)]  # to the last position
    longest = alone(model, tok, prompts[:5], rooms, sampling, ())[4]
    markers = [longest.text[len(longest.text) // 2 :][:3]]
    expected = alone(model, tok, prompts, rooms, sampling, markers)
    ends = [(len(c.ids) == n, c.stopped) for c, n in zip(expected, rooms, strict=True)]
    assert {(True, False), (False, True)} <= set(ends)  # for want of room, and by themselves
    for batch_size in (1, 5, 24):
        assert run(model, tok, prompts, rooms, sampling, markers, batch_size=batch_size) == expected
    if sampling == GREEDY:
        backwards = run(model, tok, prompts[::-1], rooms[::-1], sampling, markers, batch_size=5)
        assert backwards[::-1] == expected


@pytest.mark.parametrize("batch_size", [1, 3, 8, 40])
def test_a_token_is_paid_for_once_and_an_ended_row_never(models, tok, batch_size, monkeypatch):
    model, prompts, read, stepped = models["llama"][0], many_prompts(), [], []
    rooms = [1 + 5 * k % 17 for k in range(len(prompts))]
    monkeypatch.setattr(writing, "FORWARD", 2)
    forward, step = model.backbone.forward, writing.Batch.step

    def watched(batch):
        stepped.append((len(batch.rows), len(read)))
        return step(batch)

    monkeypatch.setattr(
        model.backbone, "forward", lambda idx, *a: read.append((idx, a[1])) or forward(idx, *a)
    )
    monkeypatch.setattr(writing.Batch, "step", watched)
    done = run(model, tok, prompts, rooms, batch_size=batch_size)
    steps = [read[n] for _, n in stepped]
    assert [rows for rows, _ in stepped] == [len(idx) for idx, _ in steps]
    # the first token of each answer is chosen by its prompt's logits
    assert sum(rows for rows, _ in stepped) == sum(len(c.ids) + c.stopped - 1 for c in done)
    assert all(mask is CAUSAL for idx, mask in steps if len(idx) == 1)
    order = in_order(prompts)
    beginnings = {tuple(prompts[k][:n]) for k, n in order if n}
    prompt_tokens = sum(idx.numel() for idx, _ in read) - sum(idx.numel() for idx, _ in steps)
    needed = sum(len(prompts[k]) - n for k, n in order) + sum(map(len, beginnings))
    assert 0 <= prompt_tokens - needed <= writing.FORWARD * (len(read) - len(steps))  # what is padded
    assert prompt_tokens < sum(map(len, prompts))


def test_what_prompts_share_is_found_and_bounded(monkeypatch):
    monkeypatch.setattr(writing, "FORWARD", 2)
    prompts = many_prompts()
    order = dict(in_order(prompts))
    assert sorted(order) == list(range(len(prompts)))
    assert [order[k] for k in (4, 8, 2, 6, 5, 9, 3, 7)] == [0, 0, 9, 9, 6, 6, 11, 11]
    own = [len(prompts[k]) - n for k, n in in_order(prompts)]
    assert own == sorted(own, reverse=True)
    assert in_order([[7, 8, 9]]) == [(0, 0)]  # alone it shares nothing
    apart = [[k] * 20 + [i] for k in range(40) for i in range(3)]
    shared = {tuple(apart[k][:n]) for k, n in in_order(apart) if n}
    assert 10 < len(shared) < writing.BEGINNINGS
    chain = [[5] * n for n in range(1, 3000)]  # each begins the next
    assert len(in_order(chain)) == len(chain)


def test_batches_that_wait_write_the_same(models, tok, monkeypatch):
    """As on a GPU, where steps are recorded."""
    model, prompts = models["gpt2"][0], many_prompts()
    rooms = [1 + 7 * k % 23 for k in range(len(prompts))]
    for sampling in (GREEDY, Sampling(temperature=1.0)):
        how = (prompts, rooms, sampling, ["a"])
        expected = run(model, tok, *how)
        with monkeypatch.context() as m:
            m.setattr("nanomed.evaluation.generate.write", in_batches)
            assert run(model, tok, *how, batch_size=5) == expected


def test_no_prompts_no_answers(models, tok):
    assert run(models["gpt2"][0], tok, [], 5) == []


def test_training_mode_is_put_back(models, tok):
    model = models["gpt2"][0].train()
    run(model, tok, [[5]], 2)
    assert model.training
    model.eval()


def test_what_generation_config_asks_for_is_said(script, model_dir, tmp_path):
    """Over the keys that transformers' own GenerationConfig has, and at its defaults not at all."""
    theirs = transformers.GenerationConfig()
    assert set(NEUTRAL | NEUTRAL_DRAWN) <= set(theirs.to_dict())
    defaults = theirs._get_default_generation_params()
    assert {k: v for k, v in (NEUTRAL | NEUTRAL_DRAWN).items() if k in defaults and defaults[k] != v} == {}
    shutil.copytree(model_dir, tmp_path / "m")
    command = (
        "eval.py",
        "generate",
        "--model",
        "m",
        "--prompt",
        "acute",
        "--max-new-tokens",
        1,
        "--dtype",
        "fp32",
    )
    theirs.save_pretrained(tmp_path / "m")
    assert "asks for" not in script(*command).stdout
    asked = {"repetition_penalty": 1.1, "top_p": 0.9}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(asked))
    assert (
        "generation_config.json asks for repetition_penalty 1.1; here settings decide"
        in script(*command).stdout
    )
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(asked | {"do_sample": True}))
    assert "asks for do_sample True, repetition_penalty 1.1, top_p 0.9; here" in script(*command).stdout
