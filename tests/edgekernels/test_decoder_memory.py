"""The compiled decoder reads and writes nothing beyond its buffers: they end where unreadable memory begins."""

from tests.edgekernels.scripts import linux_only, run

GUARDED = """
from edgekernels import PackedMatrix, _accept, _attend, _decode, _gemm, _select
from edgekernels.decoder import Decoder, DecoderConfig, Layer, Linear, Weights
from edgekernels.decoder.config import frequencies

zeros = np.zeros
np.zeros = lambda shape, dtype=float: guarded(zeros(shape, dtype))  # caches and working memory
_decode.set_level(sys.argv[1])
_gemm.set_level(sys.argv[1])
_attend.set_level(sys.argv[1])
_select.use(_accept)
rng = np.random.default_rng(0)

def floats(*shape):
    return guarded(rng.normal(0, 1, shape).astype(np.float32))

def matrix(rows, columns, bits):
    if bits is None:
        return floats(rows, columns)
    made = PackedMatrix.quantise(floats(rows, columns), bits, group=16)
    made.data, made.scale_blocks, made.offset_blocks = map(guarded, (made.data, made.scale_blocks, made.offset_blocks))
    return made

cases = [(3, 1, 6, 37, 51, 5, None), (4, 2, 16, 48, 80, 33, 4), (5, 5, 32, 16, 16, 16, 3), (2, 1, 80, 32, 48, 1, 8),
         (9, 3, 20, 33, 17, 49, None)]
for heads, kv, d, hidden, ffn, vocab, bits in cases:
    bits = None if hidden % 16 or heads * d % 16 or ffn % 16 else bits
    config = DecoderConfig(vocab, hidden, ffn, 2, heads, kv, d, 1e-5, 70, guarded(frequencies(d, 1e4)))
    def linear(rows, columns):
        return Linear(matrix(rows, columns, bits), floats(rows))
    layers = tuple(Layer(floats(hidden), linear(heads * d, hidden), linear(kv * d, hidden), linear(kv * d, hidden),
                         floats(d), floats(d), linear(hidden, heads * d), floats(hidden), linear(ffn, hidden),
                         linear(ffn, hidden), linear(hidden, ffn)) for _ in range(2))
    decoder = Decoder(config, Weights(floats(vocab, hidden), layers, floats(hidden), linear(vocab, hidden)),
                      activations="float" if heads == 4 else "int8")
    for dtype in ("float16", "float32"):
        cache = decoder.new_cache(dtype=dtype)
        for count, threads in ((1, 1), (1, 2), (17, 1), (36, 2), (1, 3), (14, 1)):
            out = guarded(zeros((count, vocab), np.float32))
            decoder.forward(rng.integers(0, vocab, count), cache, num_logits=count, out=out, num_threads=threads)
        assert len(cache) == 70 and np.isfinite(out).all()
    for page_tokens, threads in ((1, 1), (16, 2)):
        pages = decoder.new_pages(-(-70 // page_tokens) + 4, page_tokens=page_tokens)
        table = np.arange(pages.num_pages, dtype=np.int32)[::-1].copy()  # of a long text, and of a short one
        for past, count, rows in ((0, 1, [0]), (1, 68, [0, 5, 63, 64, 70]), (69, 1, [])):
            few = 3 if count > 1 else 0
            out = guarded(zeros((len(rows), vocab), np.float32)) if rows else None
            starts = [np.array([0, len(table) - 4, len(table)]), np.array([0, count, count + few]), np.array([past, 0])]
            decoder.forward_paged(rng.integers(0, vocab, count + few), pages, table, *starts,
                                  rows=np.array(rows, np.int64), out=out, num_threads=threads)
            assert not rows or np.isfinite(out).all()
print("clean")
"""
CRASH = """
floats(1, 1).base  # the first page behind a guarded array
ctypes.string_at(floats(1, 16).ctypes.data, 65)
"""


@linux_only
def test_nothing_beyond_the_buffers_is_touched(decode_level):
    result = run(GUARDED, decode_level, OMP_NUM_THREADS="4")
    assert (result.returncode, result.stdout) == (0, "clean\n"), result.stderr


@linux_only
def test_guard_pages_do_stop_a_read():
    assert run(GUARDED.split("cases =", maxsplit=1)[0] + CRASH, "base", OMP_NUM_THREADS="4").returncode < 0
