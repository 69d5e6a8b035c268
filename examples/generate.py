"""Continue texts with a small language model whose operators are those of hal.

Example::

    python examples/generate.py examples/tiny-qwen3 "It was a fine morning, and" "Elizabeth"
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import attrs
import torch
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from tokenizers import Tokenizer
from torch import Tensor

import hal
from decoder import DTYPES, Batch, Decoder, InputError, load


@attrs.frozen
class Sampling:
    """How tokens are drawn; temperature 0 takes the most probable one."""

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    seed: int = 0

    def __attrs_post_init__(self) -> None:
        """Raise ``InputError`` for a number out of its range."""
        for name, allowed, holds in (
            ("max_new_tokens", "at least 1", self.max_new_tokens >= 1),
            ("temperature", "at least 0, and finite", 0 <= self.temperature < float("inf")),
            ("top_k", "at least 0, where 0 keeps every token", self.top_k >= 0),
            ("top_p", "above 0 and at most 1", 0 < self.top_p <= 1),
            ("min_p", "between 0 and 1", 0 <= self.min_p <= 1),
            ("seed", "from 0 to 2**63 - 1", 0 <= self.seed < 2**63),
        ):
            if not holds:
                raise InputError(f"{name} must be {allowed}, not {getattr(self, name)}")

    def draw(self, logits: Tensor, offset: Tensor) -> list[int]:
        """Draw a token for each row of ``logits`` [rows, vocab_size].

        Every row has the same seed, and its own length as the offset (``offset``, [rows]): a draw
        depends on the text before it, and not on what else is in the batch.
        """
        drawn = hal.ops.sample(
            hal.ops.softmax(logits, temperature=self.temperature),
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=torch.full_like(offset, self.seed, dtype=torch.int64),
            offset=offset.long(),
        )
        return drawn.tolist()


@attrs.frozen
class Token:
    """A drawn token: which sequence it continues, and whether it is the last one there."""

    sequence: int
    id: int
    last: bool


def _check_prompts(decoder: Decoder, prompts: Sequence[Sequence[int]], block_size: int) -> None:
    if block_size < 1:
        raise InputError(f"block_size must be at least 1, not {block_size}")
    for number, prompt in enumerate(prompts, 1):
        if not prompt:
            raise InputError(f"prompt {number} is empty")
        if len(prompt) > decoder.config.context:
            found = f"{len(prompt)} tokens, the context is {decoder.config.context}"
            raise InputError(f"prompt {number} is too long: {found}")
        if max(prompt) >= decoder.config.vocab_size:
            found = f"token {max(prompt)}, the model has {decoder.config.vocab_size}"
            raise InputError(f"the tokenizer is not that of the model: prompt {number} has {found}")


def _block_table(lengths: Sequence[int], block_size: int) -> tuple[Tensor, int]:
    """Give each sequence its own blocks: ([sequences, blocks] int32, how many there are)."""
    counts = [-(-length // block_size) for length in lengths]
    rows = list(torch.arange(sum(counts), dtype=torch.int32).split(counts))
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), sum(counts)


@torch.inference_mode()
def generate(
    decoder: Decoder, prompts: Sequence[Sequence[int]], sampling: Sampling, block_size: int = 16
) -> Iterator[list[Token]]:
    """Prefill all prompts (token ids) at once, then yield one token a step for each that goes on.

    A text ends with an end-of-text token, after ``max_new_tokens``, or where the context does.
    """
    _check_prompts(decoder, prompts, block_size)
    ends = [min(len(p) + sampling.max_new_tokens, decoder.config.context + 1) for p in prompts]
    table, blocks = _block_table([end - 1 for end in ends], block_size)
    device = decoder.embedding.device
    cache, table = decoder.new_cache(blocks, block_size), table.to(device)
    live, past, new = list(range(len(prompts))), [0] * len(prompts), [list(p) for p in prompts]
    while live:
        batch = Batch.of(past, [len(ids) for ids in new], table[live], block_size)
        tokens = torch.tensor([i for ids in new for i in ids], device=device)
        logits = decoder.forward(tokens, batch, cache)
        drawn = sampling.draw(logits, batch.seq_lens)
        past = [before + len(ids) for before, ids in zip(past, new, strict=True)]
        step = [
            Token(row, token, token in decoder.config.eos or length + 1 == ends[row])
            for row, length, token in zip(live, past, drawn, strict=True)
        ]
        yield step
        past = [length for length, token in zip(past, step, strict=True) if not token.last]
        live = [token.sequence for token in step if not token.last]
        new = [[token.id] for token in step if not token.last]


@attrs.define
class Transcript:
    """Text that grows by tokens, of which a character may need several.

    Attributes:
        ids: The prompt and what was drawn.
        shown: How many of ``ids`` are in ``text``.
        start: Where decoding starts: late enough to be quick, before ``shown`` to get spaces right.
    """

    tokenizer: Tokenizer
    ids: list[int]
    text: str
    start: int = 0
    shown: int = attrs.Factory(lambda self: len(self.ids), takes_self=True)

    def add(self, token: Token) -> str:
        """Return the text that became certain: whole characters, or what is left at the end."""
        self.ids.append(token.id)
        before = self.tokenizer.decode(self.ids[self.start : self.shown])
        after = self.tokenizer.decode(self.ids[self.start :])
        if after.endswith("\N{REPLACEMENT CHARACTER}") and not token.last:
            return ""
        piece = after[len(before) :]
        self.start, self.shown, self.text = self.shown, len(self.ids), self.text + piece
        return piece


@attrs.define
class Meter:
    """Counts tokens and seconds: the first step is the prefill, the others decode."""

    prompt_tokens: int
    prefill: float = 0.0
    decode: float = 0.0
    decoded: int = 0
    ops: list[str] = attrs.field(factory=list)

    def watch(self, steps: Iterator[list[Token]]) -> Iterator[list[Token]]:
        """Pass steps on; what the receiver does with them does not count."""
        start = time.perf_counter()
        with hal.trace() as records:
            first = next(steps)
        self.ops = sorted({record.op for record in records})
        self.prefill = time.perf_counter() - start
        yield first
        start = time.perf_counter()
        for step in steps:
            self.decode += time.perf_counter() - start
            self.decoded += len(step)
            yield step
            start = time.perf_counter()

    def speed(self) -> str:
        """Say how many tokens a second there were."""
        prefill = f"prefill {self.prompt_tokens / self.prefill:.0f} tokens/s"
        if not self.decoded:
            return prefill
        return f"{prefill}, decode {self.decoded / self.decode:.0f} tokens/s"


def _show_stream(steps: Iterator[list[Token]], transcript: Transcript) -> None:
    typer.echo(transcript.text, nl=False)
    for (token,) in steps:
        typer.echo(transcript.add(token), nl=False)
    typer.echo("\n")


def _show_panels(
    steps: Iterator[list[Token]], transcripts: list[Transcript], console: Console
) -> None:
    with Live(console=console) as live:
        for step in steps:
            for token in step:
                transcripts[token.sequence].add(token)
            live.update(Group(*(Panel(Text(t.text)) for t in transcripts)))
    typer.echo()


def _show_finished(steps: Iterator[list[Token]], transcripts: list[Transcript]) -> None:
    for step in steps:
        for token in step:
            transcripts[token.sequence].add(token)
            if token.last:
                typer.echo(f"[{token.sequence + 1}] {transcripts[token.sequence].text}\n")


def show(steps: Iterator[list[Token]], transcripts: list[Transcript]) -> None:
    """Show one text as it comes, several as panels; or finished texts, away from a terminal."""
    if len(transcripts) == 1:
        _show_stream(steps, transcripts[0])
    elif sys.stdout.isatty():
        _show_panels(steps, transcripts, Console())
    else:
        _show_finished(steps, transcripts)


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read tokenizer.json, to encode prompts whole."""
    path = directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing more specific
        raise InputError(f"{path} cannot be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_decoder(directory: Path, device: str, dtype: str | None) -> Decoder:
    """Load the model where, and in the dtype, that the command line names."""
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {device!r} cannot be used: {reason}") from None
    return load(directory, torch.device(device), dtype and getattr(torch, dtype))


def run(
    decoder: Decoder, tokenizer: Tokenizer, prompts: list[str], sampling: Sampling, block_size: int
) -> None:
    """Continue the prompts, then print the speed and the kernels that served."""
    ids = [tokenizer.encode(prompt).ids if prompt else [] for prompt in prompts]
    _check_prompts(decoder, ids, block_size)
    transcripts = [Transcript(tokenizer, i, text) for i, text in zip(ids, prompts, strict=True)]
    meter = Meter(sum(map(len, ids)))
    show(meter.watch(generate(decoder, ids, sampling, block_size)), transcripts)
    typer.echo(f"{meter.speed()}\n")
    typer.echo(str(hal.report(decoder.embedding, ops=meter.ops)))


def main(
    directory: Annotated[Path, typer.Argument(help="A Hugging Face model: Llama or Qwen3.")],
    prompts: Annotated[list[str], typer.Argument(help="The texts to continue.")],
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to draw for each text.")] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Keep the k most probable; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the most probable to this mass.")] = 0.95,
    min_p: Annotated[float, typer.Option(help="Keep from this share of the largest.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same text.")] = 0,
    device: Annotated[str, typer.Option(help="Where to run, such as cpu or cuda:0.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="Default: that of the checkpoint.")] = None,
    block_size: Annotated[int, typer.Option(help="Tokens in a block of the cache.")] = 16,
) -> None:
    """Continue texts with a small language model whose operators are those of hal."""
    try:
        sampling = Sampling(max_new_tokens, temperature, top_k, top_p, min_p, seed)
        decoder = read_decoder(directory, device, dtype)
        run(decoder, read_tokenizer(directory), prompts, sampling, block_size)
    except (InputError, hal.HalError) as error:
        typer.echo(f"generate.py: {error}", err=True)
        raise typer.Exit(2) from None


app = typer.Typer(add_completion=False)
app.command()(main)

if __name__ == "__main__":
    app()
