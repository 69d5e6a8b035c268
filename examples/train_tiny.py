"""Train the small Qwen3 checkpoint in `examples/tiny-qwen3` from six public-domain novels.

The text is the data file of the Debian package `r-cran-janeaustenr`, read without R::

    apt-get download r-cran-janeaustenr
    dpkg-deb -x r-cran-janeaustenr_*.deb austen
    python examples/train_tiny.py --text austen/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb

`--text` also takes a plain UTF-8 file with chapter headings on lines of their own. The novels were
published between 1811 and 1818; the package, with its data, is under the MIT licence.

Needs torch, transformers 5 and tokenizers.
"""

import argparse
import json
import re
import struct
import time
import zlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

END = "<|endoftext|>"
NEWLINE = "Ċ"  # How byte-level BPE spells a line feed.
CONTEXT = 512
BATCH = 64
ROPE_THETA = 10000.0
DROPOUT = 0.3
HELD_OUT_EVERY = 20  # Every twentieth chapter is kept from training.
HEADING = re.compile(r"(?im)^(?:chapter|volume) (?:[ivxlc]+|\d+)\.?$")
CLOSING = re.compile(r"(?i)(?:the end|finis)\.?")


def character_vector(data: bytes) -> list[str]:
    """Decode one serialised R character vector (R Internals, section 1.8, XDR version 3)."""
    (encoding_length,) = struct.unpack_from(">i", data, 14)
    offset = 18 + encoding_length
    _, count = struct.unpack_from(">ii", data, offset)
    offset += 8
    lines = []
    for _ in range(count):
        _, length = struct.unpack_from(">ii", data, offset)
        offset += 8 + length
        lines.append(data[offset - length : offset].decode())
    return lines


def books(path: Path) -> list[str]:
    """Read a text file as one book, or an R `.rdb` file: a length, then a zlib stream, per book."""
    if path.suffix != ".rdb":
        return [path.read_text(encoding="utf-8")]
    found, data = [], path.read_bytes()
    while data:
        stream = zlib.decompressobj()
        found.append("\n".join(character_vector(stream.decompress(data[4:]))))
        data = stream.unused_data
    return found


def chapters(book: str) -> list[str]:
    """Split at the headings, without the title page; unwrap lines and drop emphasis marks."""
    found = []
    for piece in HEADING.split(book)[1:]:
        paragraphs = (" ".join(p.split()) for p in re.split(r"\n\s*\n", piece.replace("_", "")))
        body = [p for p in paragraphs if p and not CLOSING.fullmatch(p)]
        if body:
            found.append("\n\n".join(body))
    return found


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Train a byte-level BPE of 2048 tokens whose token 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2048, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def build_model(vocab_size: int) -> Qwen3ForCausalLM:
    """Build the model of 3.5 million parameters, with dropout that its config does not have."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)

    def drop(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return nn.functional.dropout(output, DROPOUT, module.training)

    for name, module in model.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(drop)
    return model


def encode(tokenizer: Tokenizer, texts: list[str], device: str) -> Tensor:
    """Return all texts as one row of token ids, each text ended by token 0."""
    return torch.tensor([i for t in texts for i in [*tokenizer.encode(t).ids, 0]], device=device)


def window_starts(tokens: Tensor, newline: int) -> Tensor:
    """List where windows may begin: at paragraphs, and at every 128th token for long ones."""
    after_break = (tokens[1:-1] == newline) & (tokens[:-2] == newline)
    paragraphs = torch.nonzero(after_break).flatten() + 2
    starts = torch.cat([paragraphs, torch.arange(0, len(tokens), 128, device=tokens.device)])
    return starts[starts + CONTEXT <= len(tokens)]


@torch.no_grad()
def held_out_loss(model: nn.Module, tokens: Tensor, batch: int = 32) -> float:
    """Return the mean loss in nats per token over disjoint windows of 512 tokens."""
    model.eval()
    windows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    with torch.autocast(tokens.device.type, torch.bfloat16):
        total = sum(float(model(input_ids=w, labels=w).loss) * len(w) for w in windows.split(batch))
    model.train()
    return total / len(windows)


def optimizer_and_schedule(model: nn.Module, steps: int) -> tuple[AdamW, OneCycleLR]:
    """Decay matrices alone; warm up over 5 % of the steps, then follow a cosine to zero."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.5},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=2e-3, betas=(0.9, 0.95))
    return optimizer, OneCycleLR(optimizer, 2e-3, steps, pct_start=0.05, cycle_momentum=False)


def train(model: nn.Module, tokens: Tensor, starts: Tensor, held: Tensor, steps: int) -> None:
    """Train on random windows and print the loss on held-out text every 500 steps."""
    optimizer, schedule = optimizer_and_schedule(model, steps)
    offsets = torch.arange(CONTEXT, device=tokens.device)
    began = time.perf_counter()
    for step in range(1, steps + 1):
        first = starts[torch.randint(len(starts), (BATCH, 1), device=starts.device)]
        window = tokens[first + offsets]
        with torch.autocast(tokens.device.type, torch.bfloat16):
            loss = model(input_ids=window, labels=window).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 500 == 0 or step == steps:
            line = f"step {step}: loss {loss.item():.3f}, held out {held_out_loss(model, held):.3f}"
            print(f"{line}, {time.perf_counter() - began:.0f} s", flush=True)


def edit_json(path: Path, **values: object) -> None:
    """Set keys of a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2) + "\n")


def save(model: Qwen3ForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Write the directory in bfloat16, with the keys that transformers 4 reads added."""
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.95, eos_token_id=0, pad_token_id=0
    )
    model.to(torch.bfloat16).save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=CONTEXT
    ).save_pretrained(out)
    edit_json(out / "config.json", rope_theta=ROPE_THETA, torch_dtype="bfloat16")
    edit_json(
        out / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        model_input_names=["input_ids", "attention_mask"],
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the checkpoint in examples/tiny-qwen3.")
    parser.add_argument("--text", type=Path, required=True, help=".rdb or plain text file")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-qwen3")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=5000, help="of 64 windows of 512 tokens")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    parts = [chapter for book in books(args.text) for chapter in chapters(book)]
    held_parts = parts[HELD_OUT_EVERY // 2 :: HELD_OUT_EVERY]
    if not held_parts:
        parser.error(f"--text needs over {HELD_OUT_EVERY // 2} chapters, found {len(parts)}")
    train_parts = [part for part in parts if part not in held_parts]
    tokenizer = train_tokenizer(train_parts)
    tokens, held = (encode(tokenizer, p, args.device) for p in (train_parts, held_parts))
    model = build_model(tokenizer.get_vocab_size()).to(args.device)
    print(f"{len(parts)} chapters, {len(held_parts)} of them held out")
    print(f"{len(tokens)} tokens and {len(held)}, {model.num_parameters()} parameters", flush=True)
    if args.device != "cpu":
        model.compile()
    starts = window_starts(tokens, tokenizer.token_to_id(NEWLINE))
    train(model, tokens, starts, held, args.steps)
    save(model, tokenizer, args.out)
    saved = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.bfloat16).to(args.device)
    print(f"saved weights in bfloat16: held out {held_out_loss(saved, held):.4f}")


if __name__ == "__main__":
    main()
