"""One model, many threads: each gets what it would get alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import items

THREADS, CALLS = 8, 100


@pytest.mark.parametrize("training", [False, True])
def test_eight_threads_get_what_one_gets(embedder_of, training):
    # A trunk that is shared, so that the layers' hooks take part; one text is long enough to be cut, which uses the
    # tokenizer twice.
    embedder = embedder_of(
        "qwen2_vl", paths=2, prefix_length=2, prefix_layers=[1], inputs={"max_text_tokens": 20}
    ).train(training)
    for module in embedder.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    batches = [[{"text": "a"}], [{"text": "word " * 40}], items("image", 2), items("text", 3)]
    chosen = [None, [1], None, [0]]
    expected = [embedder.embed(batch, paths=paths) for batch, paths in zip(batches, chosen, strict=True)]

    def work(thread: int) -> None:
        for call in range(CALLS // 10 if training else CALLS):
            number = thread % 4 if call % 20 == 0 else (call + thread) % 2
            output = embedder.embed(batches[number], paths=chosen[number])
            assert torch.equal(output.paths, expected[number].paths) and torch.equal(
                output.fused, expected[number].fused
            )

    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(work, thread) for thread in range(THREADS)]:
            future.result()
    assert embedder.training == training


def test_threads_that_train_side_by_side_recompute_what_is_theirs(embedder_of):
    embedder = embedder_of("llava_next", prefix_layers=[1]).train()
    embedder.backbone.activation_checkpointing_enable({"use_reentrant": False})
    batches = [embedder.processor(items("mixed", count), ["query"] * count)[0] for count in (1, 2, 3)]
    prefix = embedder.decoder.layers[1].self_attn.prefix

    def gradient(number: int) -> torch.Tensor:
        output = embedder(batches[number]).paths
        weights = torch.linspace(-1, 1, output.numel()).view_as(output)
        return torch.autograd.grad((output * weights).sum(), prefix.key)[0]

    expected = [gradient(number) for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        for number, future in [(number, pool.submit(gradient, number)) for number in [0, 1, 2] * 3]:
            torch.testing.assert_close(future.result(), expected[number], atol=1e-6, rtol=0)
