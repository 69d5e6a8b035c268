"""The decoder of ``examples`` against transformers, on the same weights."""

from __future__ import annotations

import ast
import collections
import functools
import json
import re
import shutil
from pathlib import Path

import attrs
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
from typer.testing import CliRunner

import decoder
import generate
import hal

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = EXAMPLES / "tiny-qwen3"

CPU = torch.device("cpu")
ACCELERATORS = [torch.accelerator.current_accelerator()] * torch.accelerator.is_available()
# Measured 3e-7 to 9e-7, for hal and for transformers alike against float64.
FLOAT32 = 3e-6
GREEDY = generate.Sampling(max_new_tokens=200, temperature=0.0)
SIZES = {"vocab_size": 515, "num_hidden_layers": 3, "max_position_embeddings": 300}
NO_IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FORMS = {
    "qwen3, tied": lambda: Qwen3Config(
        **SIZES, **NO_IDS, hidden_size=70, intermediate_size=101, num_attention_heads=6,
        num_key_value_heads=3, head_dim=24, tie_word_embeddings=True,
    ),
    "qwen3, one kv head, bias": lambda: Qwen3Config(
        **SIZES, **NO_IDS, hidden_size=64, intermediate_size=57, num_attention_heads=4,
        num_key_value_heads=1, head_dim=40, attention_bias=True, rope_parameters=LLAMA3,
    ),
    "llama, derived head_dim": lambda: LlamaConfig(
        **SIZES, **NO_IDS, hidden_size=80, intermediate_size=129, num_attention_heads=2,
        rms_norm_eps=1e-3, rope_parameters={"rope_type": "linear", "factor": 3.0,
                                            "rope_theta": 777.0},
    ),
    "llama, every bias, tied": lambda: LlamaConfig(
        **SIZES, **NO_IDS, hidden_size=75, intermediate_size=33, num_attention_heads=5,
        num_key_value_heads=1, head_dim=40, attention_bias=True, mlp_bias=True,
        tie_word_embeddings=True,
    ),
    "llama3 rope": lambda: LlamaConfig(
        **SIZES, **NO_IDS, hidden_size=144, intermediate_size=71, num_attention_heads=6,
        num_key_value_heads=3, head_dim=24, rope_parameters=LLAMA3,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """More threads than idle cores wait for each other at every small product."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def save_byte_tokenizer(directory):
    """Write a tokenizer whose tokens are the 256 bytes and one end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A function that saves a form with random weights, large enough that every one matters."""

    @functools.cache
    def save(form, dtype=torch.float32):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(FORMS[form]())
        for name, weight in model.named_parameters():
            scale = weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.3
            torch.nn.init.normal_(weight, float("norm" in name), scale)
        torch.nn.init.normal_(model.get_input_embeddings().weight, 0, 0.03)
        directory = tmp_path_factory.mktemp("model")
        model.to(dtype).save_pretrained(directory)
        save_byte_tokenizer(directory)
        return directory

    return save


@pytest.fixture
def copied(saved, tmp_path):
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved("qwen3, tied"), tmp_path / "model"))


@functools.cache
def theirs(directory, dtype=torch.float32, device=CPU):
    """The same weights in transformers, computing in ``dtype``."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval().to(device)


def tokens_of(steps, count):
    """Gather the drawn ids of each of ``count`` sequences."""
    drawn = [[] for _ in range(count)]
    for token in (token for step in steps for token in step):
        drawn[token.sequence].append(token.id)
    return drawn


def all_logits(ours, prompts, forced, block_size=16):
    """Logits of every prompt token, then of ``forced`` one by one, with blocks in random order."""
    room = -(-(max(map(len, prompts)) + len(forced)) // block_size)
    shuffle = torch.Generator().manual_seed(0)
    blocks = torch.randperm(room * len(prompts), generator=shuffle)
    device = ours.embedding.device
    table = blocks.view(len(prompts), room).int().to(device)
    cache, past, found = ours.new_cache(len(blocks), block_size), [0] * len(prompts), []
    steps = [prompts, *([[token]] * len(prompts) for token in forced)]
    for step in steps:
        new = [len(ids) for ids in step]
        batch = decoder.Batch.of(past, new, table, block_size)
        batch = attrs.evolve(batch, outputs=torch.arange(sum(new), device=device))
        tokens = torch.tensor([i for ids in step for i in ids], device=device)
        found.append(ours.forward(tokens, batch, cache).split(new))
        past = [a + b for a, b in zip(past, new, strict=True)]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def prompts_for(vocab_size, lengths=(33, 1, 17, 6)):
    random = torch.Generator().manual_seed(3)
    return [torch.randint(vocab_size, (n,), generator=random).tolist() for n in lengths]


def relative_error(got, expected):
    """Norm of the difference over all rows, by the norm of what was expected."""
    pairs = list(zip(got, expected, strict=True))
    difference = sum((a.double() - b.double()).square().sum() for a, b in pairs)
    return float((difference / sum(b.double().square().sum() for _, b in pairs)).sqrt())


def their_logits(model, prompts, forced):
    given = [torch.tensor([[*p, *forced]], device=model.device) for p in prompts]
    return [model(ids).logits[0].detach() for ids in given]


@pytest.fixture(params=[CPU, *ACCELERATORS], ids=str)
def device(request):
    return request.param


@pytest.fixture(params=["tiny", *FORMS])
def directory(request, saved):
    return TINY if request.param == "tiny" else saved(request.param)


@pytest.mark.parametrize("block_size", [1, 7, 16])
def test_logits_of_a_ragged_batch_equal_those_of_transformers(directory, device, block_size):
    ours = decoder.load(directory, device, torch.float32)
    prompts, forced = prompts_for(ours.config.vocab_size), [5, 400, 33, 33, 0, 77, 128, 2]
    expected = their_logits(theirs(directory, device=device), prompts, forced)
    got = all_logits(ours, prompts, forced, block_size)
    for row, reference in zip(got, expected, strict=True):
        assert relative_error([row], [reference]) <= FLOAT32


def test_greedy_texts_equal_those_of_transformers(directory):
    # The closest two logits of any step are 100 times farther apart than the two models.
    ours = decoder.load(directory, CPU, torch.float32)
    prompt = prompts_for(ours.config.vocab_size, [9])[0]
    expected = theirs(directory).generate(
        torch.tensor([prompt]), max_new_tokens=200, do_sample=False
    )
    (got,) = tokens_of(generate.generate(ours, [prompt], GREEDY), 1)
    assert got == expected[0, len(prompt) :].tolist()
    assert len(got) == 200 or got[-1] in ours.config.eos


@pytest.mark.parametrize("device", ACCELERATORS, ids=str)
def test_greedy_texts_are_the_same_on_an_accelerator(directory, device):
    texts = []
    for where in (CPU, device):
        ours = decoder.load(directory, where, torch.float32)
        prompts = prompts_for(ours.config.vocab_size)
        texts.append(tokens_of(generate.generate(ours, prompts, GREEDY), len(prompts)))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_close_to_float32_as_transformers(saved, directory, device, dtype):
    ours = decoder.load(directory, device, dtype)
    prompts, forced = prompts_for(ours.config.vocab_size), [5, 400, 33]
    rounded = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).float().to(device)
    expected = their_logits(rounded, prompts, forced)
    theirs_here = their_logits(theirs(directory, dtype, device), prompts, forced)
    allowed = relative_error(theirs_here, expected)
    assert relative_error(all_logits(ours, prompts, forced), expected) <= allowed


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_text_does_not_depend_on_the_batch(saved, temperature):
    ours = decoder.load(saved("llama3 rope"), CPU)
    sampling = generate.Sampling(60, temperature, top_k=50, top_p=0.9, min_p=0.01, seed=11)
    prompts = prompts_for(515)
    together = tokens_of(generate.generate(ours, prompts, sampling, block_size=7), 4)
    alone = [tokens_of(generate.generate(ours, [p], sampling), 1)[0] for p in prompts]
    assert together == alone
    assert len({tuple(text) for text in together}) == 4


def test_batched_logits_equal_those_of_each_prompt_alone(saved):
    ours, forced = decoder.load(saved("qwen3, tied"), CPU), [1, 2, 3]
    prompts = prompts_for(515)
    alone = [all_logits(ours, [prompt], forced)[0] for prompt in prompts]
    for row, reference in zip(all_logits(ours, prompts, forced), alone, strict=True):
        assert relative_error([row], [reference]) <= FLOAT32


def test_the_seed_decides_the_draws(saved):
    ours, prompts = decoder.load(saved("qwen3, tied"), CPU), prompts_for(515, [4])
    samplings = [generate.Sampling(30, 1.0, seed=seed) for seed in (0, 1, 0, 2**63 - 1)]
    drawn = [tokens_of(generate.generate(ours, prompts, s), 1) for s in samplings]
    texts = [tuple(text) for (text,) in drawn]
    assert texts[0] == texts[2]
    assert len(set(texts)) == 3


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_each_limit_alone_can_leave_one_token(saved, narrow):
    ours, prompts = decoder.load(saved("qwen3, tied"), CPU), prompts_for(515)
    hot = generate.Sampling(20, 5.0, **{"top_p": 1.0} | narrow)
    greedy = generate.Sampling(20, 0.0)
    found, expected = (tokens_of(generate.generate(ours, prompts, s), 4) for s in (hot, greedy))
    assert found == expected


def test_a_sequence_stops_at_eos_and_the_rest_goes_on(saved):
    ours, prompts = decoder.load(saved("qwen3, tied"), CPU), prompts_for(515)
    sampling = generate.Sampling(40, 1.0, top_p=1.0)
    free = tokens_of(generate.generate(ours, prompts, sampling), 4)
    eos = free[2][11]
    stopping = attrs.evolve(ours, config=attrs.evolve(ours.config, eos=frozenset({eos, 514})))
    cut = tokens_of(generate.generate(stopping, prompts, sampling), 4)
    ends = [next((i for i, t in enumerate(text) if t in (eos, 514)), 39) for text in free]
    assert cut == [text[: end + 1] for text, end in zip(free, ends, strict=True)]
    assert ends[2] <= 11
    assert max(ends) > 11


def test_a_sequence_stops_where_the_context_ends(saved):
    ours = decoder.load(saved("llama3 rope"), CPU)
    prompts = prompts_for(515, [300, 297, 5])
    lengths = [len(x) for x in tokens_of(generate.generate(ours, prompts, GREEDY, 7), 3)]
    assert lengths == [1, 4, 200]


def test_every_operator_goes_through_hal(saved):
    for form, norms in (("qwen3, tied", 1 + 2 * 3), ("llama3 rope", 1)):
        ours = decoder.load(saved(form), CPU)
        with hal.trace() as records:
            next(generate.generate(ours, prompts_for(515), GREEDY))
        assert collections.Counter(record.op for record in records) == {
            "rms_norm": norms,
            "rotary_embedding_": 3,
            "store_kv_cache_": 3,
            "paged_attention": 3,
            "fused_add_rms_norm_": 6,
            "silu_and_mul": 3,
            "softmax": 1,
            "sample": 1,
        }


@pytest.mark.parametrize("name", ["decoder.py", "generate.py"])
def test_torch_computes_nothing_but_matrix_products(name):
    nodes = list(ast.walk(ast.parse((EXAMPLES / name).read_text())))
    imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and "torch" in (n.module or "")]
    names = {alias.name for n in imports for alias in n.names}
    assert names <= {"Tensor", "linear", "load_file"}
    attributes = {ast.unparse(n) for n in nodes if isinstance(n, ast.Attribute)}
    last = {attribute.rsplit(".", 1)[-1] for attribute in attributes}
    assert not {a for a in attributes if "functional" in a}
    assert not {a for a in attributes if a.endswith(".softmax")} - {"hal.ops.softmax"}
    assert not last & {
        "addmm", "argmax", "baddbmm", "bmm", "einsum", "exp", "log", "matmul", "mean", "mm",
        "multinomial", "norm", "pow", "rsqrt", "sigmoid", "silu", "sort", "sqrt", "square", "topk",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["naïve 日本語 🙂\u200d, done", "plain", "\ufffd is a sign"])
def test_streaming_never_shows_half_a_character(tmp_path, text):
    save_byte_tokenizer(tmp_path)
    tokenizer = generate.read_tokenizer(tmp_path)
    ids = tokenizer.encode(text).ids
    transcript = generate.Transcript(tokenizer, tokenizer.encode("é:").ids, "é:")
    pieces = [transcript.add(generate.Token(0, i, n == len(ids) - 1)) for n, i in enumerate(ids)]
    assert transcript.text == "é:" + text
    assert "".join(pieces) == text
    assert len(ids) == len(text.encode())
    assert text.startswith("\ufffd") or not any("\ufffd" in piece for piece in pieces)


def test_streaming_shows_a_broken_character_at_the_end(tmp_path):
    save_byte_tokenizer(tmp_path)
    tokenizer = generate.read_tokenizer(tmp_path)
    first, second, _ = tokenizer.encode("語").ids
    transcript = generate.Transcript(tokenizer, tokenizer.encode("a").ids, "a")
    assert transcript.add(generate.Token(0, first, last=False)) == ""
    assert transcript.add(generate.Token(0, second, last=True)) == "\ufffd"


def test_a_prompt_is_encoded_whole_whatever_the_tokenizer_was_saved_with(tmp_path):
    save_byte_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(generate.read_tokenizer(tmp_path).encode("seven b").ids) == 7


def test_a_token_that_the_model_does_not_have_is_refused(saved):
    ours = decoder.load(saved("llama3 rope"), CPU)
    with pytest.raises(decoder.InputError, match="prompt 2 has token 515, the model has 515"):
        next(generate.generate(ours, [[514], [515]], GREEDY))


@pytest.mark.parametrize(("ids", "expected"), [(3, {3}), ([3, 4], {3, 4}), (None, set())])
def test_generation_config_has_the_last_word_on_eos(copied, ids, expected):
    spoil("config.json", eos_token_id=5)(copied)
    (copied / "generation_config.json").write_text("{}")
    assert decoder.Config.from_directory(copied).eos == {5}
    spoil("generation_config.json", eos_token_id=ids)(copied)
    assert decoder.Config.from_directory(copied).eos == expected


def command_line(*arguments):
    return CliRunner().invoke(generate.app, [str(a) for a in arguments])


def test_command_line_continues_one_text():
    options = ("--max-new-tokens", 40, "--temperature", 0, "--dtype", "float32")
    result = command_line(TINY, "It was", *options)
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode("It was").ids])
    expected = theirs(TINY).generate(ids, max_new_tokens=40, do_sample=False)[0]
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(tokenizer.decode(expected.tolist()) + "\n\nprefill ")
    assert "tokens/s, decode " in result.stdout
    assert "paged_attention" in result.stdout


def test_command_line_continues_several_texts(saved):
    options = ("--max-new-tokens", 5, "--dtype", "bfloat16", "--block-size", 3)
    result = command_line(saved("llama3 rope"), "One", "Another [one]", *options)
    assert result.exit_code == 0, result.output
    assert "[1] One" in result.output
    assert "[2] Another [one]" in result.output


def spoil(name, **fields):
    """Return an edit of a JSON file in the directory."""

    def edit(directory):
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def weights(edit):
    """Return an edit of the tensors in the directory."""

    def apply(directory):
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        save_file(tensors, directory / "model.safetensors")

    return apply


Q_PROJ = "model.layers.1.self_attn.q_proj.weight"
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
SPOILED = {
    "no directory": (shutil.rmtree, "no such directory"),
    "no config": (lambda d: (d / "config.json").unlink(), "has no config.json"),
    "config is not JSON": (lambda d: (d / "config.json").write_text("{"), "cannot be read"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "not list"),
    "other model": (spoil("config.json", model_type="mamba"), "mamba.*llama.*qwen3"),
    "other head": (spoil("config.json", architectures=["Qwen3ForX"]), "Qwen3ForX.*qwen3"),
    "field missing": (spoil("config.json", hidden_size=None), "hidden_size.*None"),
    "dtype": (spoil("config.json", dtype="int4"), "dtype.*bfloat16.*'int4'"),
    "field odd": (spoil("config.json", num_hidden_layers="3"), "num_hidden_layers.*'3'"),
    "heads": (spoil("config.json", num_key_value_heads=4), "6 heads, 4"),
    "activation": (spoil("config.json", hidden_act="gelu"), "hidden_act = 'gelu'"),
    "window": (
        spoil("config.json", use_sliding_window=True, sliding_window=8),
        "sliding_window = 8",
    ),
    "layer types": (spoil("config.json", layer_types=["sliding_attention"]), "layer_types"),
    "rope type": (spoil("config.json", rope_parameters=YARN), "yarn.*llama3"),
    "rope factor": (spoil("config.json", rope_parameters=LLAMA3 | {"factor": None}), "factor"),
    "multiplier": (spoil("config.json", attention_multiplier=0.1), "attention_multiplier = 0.1"),
    "quantized": (spoil("config.json", quantization_config={"bits": 4}), "quantization_config"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors cannot"),
    "cut weights": (lambda d: (d / "model.safetensors").write_bytes(b"x"), "cannot be read"),
    "missing weight": (weights(lambda w: w.pop(Q_PROJ)), f"lack {Q_PROJ}"),
    "wrong shape": (
        weights(lambda w: w.update({Q_PROJ: w[Q_PROJ][:, 1:].contiguous()})),
        rf"{Q_PROJ} must be \[144, 70\] floating point, not \[144, 69\]",
    ),
    "unknown weight": (weights(lambda w: w.update(extra=torch.ones(1))), "1 unknown.*extra"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
}
WRONG = {
    "long prompt": (["x" * 301], "prompt 1 is too long: 301 tokens, the context is 300"),
    "empty prompt": (["fine", ""], "prompt 2 is empty"),
    "top_p": (["a", "--top-p", "1.5"], "top_p must be above 0 and at most 1, not 1.5"),
    "top_p is 0": (["a", "--top-p", "0"], "top_p must be above 0"),
    "min_p": (["a", "--min-p", "-0.5"], "min_p must be"),
    "top_k": (["a", "--top-k", "-1"], "top_k must be"),
    "temperature": (["a", "--temperature", "nan"], "temperature must be"),
    "tokens": (["a", "--max-new-tokens", "0"], "max_new_tokens must be"),
    "seed": (["a", "--seed", str(2**63)], "seed must be"),
    "block size": (["a", "--block-size", "0"], "block_size must be"),
    "dtype": (["a", "--dtype", "int8"], "dtype must be one of bfloat16"),
    "device": (["a", "--device", "abacus"], "device 'abacus' cannot be used"),
}


def refuse(result, message):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert re.search(message, line), line


@pytest.mark.parametrize("case", SPOILED)
def test_a_bad_directory_is_one_line_and_status_2(copied, case):
    edit, message = SPOILED[case]
    edit(copied)
    refuse(command_line(copied, "a prompt"), message)


@pytest.mark.parametrize("case", WRONG)
def test_a_bad_argument_is_one_line_and_status_2(copied, case):
    arguments, message = WRONG[case]
    refuse(command_line(copied, *arguments), message)


def test_shards_and_old_configurations_load_alike(saved, tmp_path):
    new = saved("llama, derived head_dim")
    copied = Path(shutil.copytree(new, tmp_path / "model"))
    scaling = {"type": "linear", "factor": 3.0}
    spoil("config.json", rope_parameters=None, rope_theta=777.0, rope_scaling=scaling)(copied)
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    index = {name: f"model-{n % 2}.safetensors" for n, name in enumerate(tensors)}
    for file in set(index.values()):
        save_file({k: v for k, v in tensors.items() if index[k] == file}, copied / file)
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    whole, sharded = (decoder.load(d, CPU) for d in (new, copied))
    prompts = prompts_for(515)
    got, expected = (all_logits(d, prompts, [1]) for d in (sharded, whole))
    assert all(map(torch.equal, got, expected))
