// y += scale * (x A^T) B for rows that use different adapters, without gathering any weights.
//
// Rows are grouped by adapter ("groups"); base-only rows are in no group and are never touched.
// Sums are float32; the shrunk rows h are bfloat16 where two of its products are one instruction,
// else float32.
// Vectors are GCC/Clang vector extensions, so one source serves AVX2, AVX-512 and NEON.

#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// One layer's adapters; the same memory as serve/cpu_lora/kernel.py declares.
struct Layer {
  const void* const* a;   // [slices, slots] of A in blocks
  const void* const* b;   // [slices, slots] of B in blocks
  const int64_t* widths;  // per slice
  const int32_t* ranks;   // [slices, slots]
  int64_t num_in;         // even where products come in pairs
  int32_t num_slices, num_slots;
};

// Which rows use which adapter, in tiles of at most ROWS rows of one adapter.
struct Batch {
  const int32_t* slots;  // [tiles]
  const int32_t* rows;   // [tiles, ROWS], -1 beyond the tile's last row
  int32_t num_tiles;
};

namespace {

// Floats of one register (the compiler cuts longer vectors up by way of memory), and registers of
// outputs that are expanded together: with ROWS rows as many sums as there are registers for.
#if defined(__AVX512F__)
constexpr int LANES = 16, VECS = 4;
#elif defined(__AVX2__)
constexpr int LANES = 8, VECS = 2;
#else
constexpr int LANES = 4, VECS = 4;
#endif
constexpr int ROWS = 6;  // rows of the batch per tile
constexpr int MAX_RANK = 512;  // the largest that vLLM takes
// Weights lie in the order in which they are read, so that those of adapters that are not in the
// cache arrive as one stream: A in blocks of LANES ranks, [blocks, num_in, LANES]; B in blocks of
// outputs, [blocks, rank, BLOCK]. Where two bfloat16 products are one instruction (PAIRS), two
// neighbours of the summed dimension lie beside each other: [.., num_in/2, LANES, 2] and
// [.., rank/2, BLOCK, 2], the rank rounded up to an even number.
constexpr int BLOCK = VECS * LANES;
#ifdef __AVX512BF16__
constexpr bool PAIRS = true;
#else
constexpr bool PAIRS = false;
#endif

constexpr int64_t THREADS_FROM = 500000;  // products of a call

typedef float f32v __attribute__((vector_size(LANES * 4)));
typedef uint32_t u32v __attribute__((vector_size(LANES * 4)));
typedef uint16_t u16v __attribute__((vector_size(LANES * 2)));

struct bf16 {
  uint16_t bits;
};

inline float to_float(float v) { return v; }
inline float to_float(bf16 v) {
  const uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}
inline void from_float(float v, float* out) { *out = v; }
inline void from_float(float v, bf16* out) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  // Round to nearest, ties to even; a NaN must not be rounded into an infinity.
  out->bits = nan ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline f32v load(const float* p) {
  f32v v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline f32v load(const bf16* p) {
  u16v half;
  std::memcpy(&half, p, sizeof half);
  return reinterpret_cast<f32v>(__builtin_convertvector(half, u32v) << 16);
}
inline void store(f32v v, float* p) { std::memcpy(p, &v, sizeof v); }
inline void store(f32v v, bf16* p) {
  const u32v bits = reinterpret_cast<u32v>(v);
  const u32v nan = reinterpret_cast<u32v>((bits & 0x7fffffffu) > 0x7f800000u);
  const u32v even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const u32v rounded = (even & ~nan) | (0x7fc0u & nan);
  const u16v half = __builtin_convertvector(rounded, u16v);
  std::memcpy(p, &half, sizeof half);
}
// h[row][LANES ranks] = x A of one block of ranks; rows of x are contiguous.
template <int NR, typename T>
inline void shrink_block(const T* const* x, const T* a, int64_t num_in, float* const* h) {
  f32v acc[NR] = {};
  for (int64_t i = 0; i < num_in; ++i) {
    const f32v av = load(a + i * LANES);
    for (int r = 0; r < NR; ++r) acc[r] += to_float(x[r][i]) * av;
  }
  for (int r = 0; r < NR; ++r) store(acc[r], h[r]);
}

// y[row][BLOCK outputs] += scale * h[row] B of one block of outputs.
template <int NR, typename T>
inline void expand_block(T* const* y, const float* const* h, const T* b, int rank, float scale) {
  f32v acc[NR][VECS] = {};
  for (int k = 0; k < rank; ++k) {
    f32v bs[VECS];
    for (int v = 0; v < VECS; ++v) bs[v] = load(b + k * BLOCK + v * LANES);
    for (int r = 0; r < NR; ++r)
      for (int v = 0; v < VECS; ++v) acc[r][v] += h[r][k] * bs[v];
  }
  for (int r = 0; r < NR; ++r)
    for (int v = 0; v < VECS; ++v) {
      T* out = y[r] + v * LANES;
      store(load(out) + scale * acc[r][v], out);
    }
}

#ifdef __AVX512BF16__
inline __m512bh pairs_at(const void* p) { return (__m512bh)_mm512_loadu_si512(p); }
inline __m512bh pair_of(const void* p) {
  int32_t both;
  std::memcpy(&both, p, sizeof both);
  return (__m512bh)_mm512_set1_epi32(both);
}

template <int NR>
inline void shrink_block(const bf16* const* x, const bf16* a, int64_t num_in, float* const* h) {
  // With few rows one chain of sums a row would wait for itself.
  constexpr int CHAINS = NR <= 4 ? 2 : 1;
  __m512 acc[NR][CHAINS];
  for (int r = 0; r < NR; ++r)
    for (int c = 0; c < CHAINS; ++c) acc[r][c] = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + 2 * CHAINS <= num_in; i += 2 * CHAINS)
    for (int c = 0; c < CHAINS; ++c) {
      const __m512bh av = pairs_at(a + (i + 2 * c) * LANES);
      for (int r = 0; r < NR; ++r)
        acc[r][c] = _mm512_dpbf16_ps(acc[r][c], pair_of(x[r] + i + 2 * c), av);
    }
  for (; i < num_in; i += 2) {
    const __m512bh av = pairs_at(a + i * LANES);
    for (int r = 0; r < NR; ++r) acc[r][0] = _mm512_dpbf16_ps(acc[r][0], pair_of(x[r] + i), av);
  }
  for (int r = 0; r < NR; ++r) {
    if (CHAINS == 2) acc[r][0] = _mm512_add_ps(acc[r][0], acc[r][CHAINS - 1]);
    _mm512_storeu_ps(h[r], acc[r][0]);
  }
}

// h is bfloat16, as in vLLM's own operators; unlike there its product is added before rounding.
template <int NR>
inline void expand_block(bf16* const* y, const float* const* h, const bf16* b, int rank,
                         float scale) {
  __m512 acc[NR][VECS];
  for (int r = 0; r < NR; ++r)
    for (int v = 0; v < VECS; ++v) acc[r][v] = _mm512_setzero_ps();
  for (int k = 0; k < rank; k += 2) {
    __m512bh bs[VECS];
    for (int v = 0; v < VECS; ++v) bs[v] = pairs_at(b + k * BLOCK + v * 2 * LANES);
    for (int r = 0; r < NR; ++r) {
      const __m512bh pair = pair_of(reinterpret_cast<const bf16*>(h[r]) + k);
      for (int v = 0; v < VECS; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], pair, bs[v]);
    }
  }
  const __m512 scales = _mm512_set1_ps(scale);
  for (int r = 0; r < NR; ++r)
    for (int v = 0; v < VECS; v += 2) {
      bf16* out = y[r] + v * LANES;
      const __m512 first = _mm512_fmadd_ps(scales, acc[r][v], (__m512)load(out));
      const __m512 second = _mm512_fmadd_ps(scales, acc[r][v + 1], (__m512)load(out + LANES));
      _mm512_storeu_si512(out, (__m512i)_mm512_cvtne2ps_pbh(second, first));
    }
}
#endif

// In place: float32 to bfloat16, in the first half of the same bytes.
inline void round_row(float* h, int rank) {
  for (int k = 0; k < rank; ++k) {
    bf16 rounded;
    from_float(h[k], &rounded);
    std::memcpy(reinterpret_cast<bf16*>(h) + k, &rounded, sizeof rounded);
  }
}

template <typename T>
struct Call {
  const Layer& layer;
  const Batch& batch;
  T* y;
  int64_t y_stride;
  const T* x;
  int64_t x_stride;
  float scale;

  static constexpr bool ROUNDED = PAIRS && sizeof(T) == 2;

  int rows_of(int tile) const {
    int n = 0;
    while (n < ROWS && batch.rows[tile * ROWS + n] >= 0) ++n;
    return n;
  }

  int at(int tile, int slice) const { return slice * layer.num_slots + batch.slots[tile]; }
  int rank_of(int tile, int slice) const { return layer.ranks[at(tile, slice)]; }
  static int padded(int rank) { return (rank + LANES - 1) / LANES * LANES; }

  // h [ROWS, padded rank] = x A of one slice.
  void shrink(int tile, int slice, float* h) const {
    const int n = rows_of(tile), rank = rank_of(tile, slice);
    const T* xs[ROWS];
    for (int r = 0; r < n; ++r) xs[r] = x + batch.rows[tile * ROWS + r] * x_stride;
    const T* a = static_cast<const T*>(layer.a[at(tile, slice)]);
    const int stride = padded(rank);
    for (int k = 0; k < rank; k += LANES) {
      float* hs[ROWS];
      for (int r = 0; r < n; ++r) hs[r] = h + r * stride + k;
      const T* block = a + k * layer.num_in;
      switch (n) {
        case 1: shrink_block<1>(xs, block, layer.num_in, hs); break;
        case 2: shrink_block<2>(xs, block, layer.num_in, hs); break;
        case 3: shrink_block<3>(xs, block, layer.num_in, hs); break;
        case 4: shrink_block<4>(xs, block, layer.num_in, hs); break;
        case 5: shrink_block<5>(xs, block, layer.num_in, hs); break;
        default: shrink_block<6>(xs, block, layer.num_in, hs); break;
      }
    }
    if (ROUNDED)
      for (int r = 0; r < n; ++r) round_row(h + r * stride, (rank + 1) & ~1);
  }

  // y of one slice, which begins at column `offset`.
  void expand(int tile, int slice, int64_t offset, const float* h) const {
    const int n = rows_of(tile), rank = rank_of(tile, slice);
    if (rank == 0) return;
    const int64_t last = layer.widths[slice];
    const T* b = static_cast<const T*>(layer.b[at(tile, slice)]);
    const int stride = padded(rank), depth = ROUNDED ? (rank + 1) & ~1 : rank;
    for (int64_t o = 0; o < last; o += BLOCK) {
      const T* block = b + o * depth;
      const int64_t width = last - o < BLOCK ? last - o : BLOCK;
      T* ys[ROWS];
      const float* hs[ROWS];
      T whole[ROWS][BLOCK];
      for (int r = 0; r < n; ++r) {
        ys[r] = y + batch.rows[tile * ROWS + r] * y_stride + offset + o;
        hs[r] = h + r * stride;
        if (width < BLOCK) {  // the slice ends within the block
          std::memcpy(whole[r], ys[r], width * sizeof(T));
          ys[r] = whole[r];
        }
      }
      switch (n) {
        case 1: expand_block<1>(ys, hs, block, rank, scale); break;
        case 2: expand_block<2>(ys, hs, block, rank, scale); break;
        case 3: expand_block<3>(ys, hs, block, rank, scale); break;
        case 4: expand_block<4>(ys, hs, block, rank, scale); break;
        case 5: expand_block<5>(ys, hs, block, rank, scale); break;
        default: expand_block<6>(ys, hs, block, rank, scale); break;
      }
      if (width < BLOCK)
        for (int r = 0; r < n; ++r)
          std::memcpy(y + batch.rows[tile * ROWS + r] * y_stride + offset + o, whole[r],
                      width * sizeof(T));
    }
  }

  void tile_rows(int tile) const {
    float h[ROWS * MAX_RANK];
    int64_t offset = 0;
    for (int s = 0; s < layer.num_slices; ++s) {
      shrink(tile, s, h);
      expand(tile, s, offset, h);
      offset += layer.widths[s];
    }
  }

  void run() const {
    int64_t weights = 0, products = 0;  // of one rank; of the call
    for (int s = 0; s < layer.num_slices; ++s) weights += layer.num_in + layer.widths[s];
    for (int t = 0; t < batch.num_tiles; ++t) products += rank_of(t, 0) * ROWS * weights;
    // Below this, waking another thread costs more than it saves. A tile is one thread's from its
    // first input to its last output, so that nobody waits in between.
#pragma omp parallel for schedule(dynamic) if (batch.num_tiles > 1 && products > THREADS_FROM)
    for (int t = 0; t < batch.num_tiles; ++t) tile_rows(t);
  }
};

}  // namespace

extern "C" int32_t lora_pairs() { return PAIRS; }
extern "C" int32_t lora_lanes() { return LANES; }
extern "C" int32_t lora_block() { return BLOCK; }

extern "C" void lora_add_float32(const Layer* layer, const Batch* batch, float* y,
                                 int64_t y_stride, const float* x, int64_t x_stride,
                                 float scale) {
  Call<float>{*layer, *batch, y, y_stride, x, x_stride, scale}.run();
}

extern "C" void lora_add_bfloat16(const Layer* layer, const Batch* batch, bf16* y,
                                  int64_t y_stride, const bf16* x, int64_t x_stride,
                                  float scale) {
  Call<bf16>{*layer, *batch, y, y_stride, x, x_stride, scale}.run();
}
