// y += scale * (x A^T) B for rows that use different adapters, without gathering any weights.
//
// Rows are grouped by adapter ("groups"); base-only rows are in no group and are never touched.
// Every adapter's weights are read once a call. Sums are float32, the shrunk rows h stay float32.
// Vectors are GCC/Clang vector extensions, so one source serves AVX2, AVX-512 and NEON.

#include <cstdint>
#include <cstring>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

// One layer's stacked adapters; the same memory as serve/cpu_lora/kernel.py declares.
struct Layer {
  const void* const* a;   // per slice [slots, max_rank, num_in]
  const void* const* b;   // per slice [slots, max_rank, width]
  const int64_t* widths;  // per slice
  const int32_t* ranks;   // [slices, slots]
  int64_t num_in;
  int32_t num_slices, num_slots, max_rank;
};

// Which rows use which adapter, in tiles of at most ROWS rows of one adapter.
struct Batch {
  const int32_t* slots;  // [tiles]
  const int32_t* rows;   // [tiles, ROWS], -1 beyond the tile's last row
  float* h;              // scratch [tiles, slices, ROWS, max_rank]
  int32_t num_tiles;
};

namespace {

constexpr int LANES = 16;
constexpr int ROWS = 4;   // rows of the batch per tile
constexpr int RANKS = 4;  // ranks per tile of the shrink
constexpr int VECS = 4;   // vectors of outputs per tile of the expand

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
// Pairwise, in the order that shuffles make cheap.
inline float sum(f32v v) {
  typedef float half_v __attribute__((vector_size(LANES * 2)));
  typedef float quarter_v __attribute__((vector_size(LANES)));
  half_v halves[2];
  std::memcpy(halves, &v, sizeof v);
  const half_v eight = halves[0] + halves[1];
  quarter_v quarters[2];
  std::memcpy(quarters, &eight, sizeof eight);
  const quarter_v four = quarters[0] + quarters[1];
  return (four[0] + four[1]) + (four[2] + four[3]);
}

// h[row][rank] for up to ROWS rows and RANKS ranks of one adapter.
template <int NR, int NK, typename T>
inline void shrink_tile(const T* const* x, const T* a, int64_t num_in, float* const* h) {
  f32v acc[NR][NK] = {};
  int64_t i = 0;
  for (; i + LANES <= num_in; i += LANES) {
    f32v xs[NR];
    for (int r = 0; r < NR; ++r) xs[r] = load(x[r] + i);
    for (int k = 0; k < NK; ++k) {
      const f32v av = load(a + k * num_in + i);
      for (int r = 0; r < NR; ++r) acc[r][k] += xs[r] * av;
    }
  }
  for (int r = 0; r < NR; ++r)
    for (int k = 0; k < NK; ++k) {
      float total = sum(acc[r][k]);
      for (int64_t j = i; j < num_in; ++j)
        total += to_float(x[r][j]) * to_float(a[k * num_in + j]);
      h[r][k] = total;
    }
}

#ifdef __AVX512BF16__
// The same with two products an instruction and no conversion.
template <int NR, int NK>
inline void shrink_tile(const bf16* const* x, const bf16* a, int64_t num_in, float* const* h) {
  constexpr int PAIRS = 2 * LANES;
  __m512 acc[NR][NK];
  for (int r = 0; r < NR; ++r)
    for (int k = 0; k < NK; ++k) acc[r][k] = _mm512_setzero_ps();
  for (int64_t i = 0; i < num_in; i += PAIRS) {
    const int64_t left = num_in - i;
    const __mmask32 used = left >= PAIRS ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
    __m512bh xs[NR];
    for (int r = 0; r < NR; ++r)
      xs[r] = reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(used, x[r] + i));
    for (int k = 0; k < NK; ++k) {
      const __m512bh av =
          reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(used, a + k * num_in + i));
      for (int r = 0; r < NR; ++r) acc[r][k] = _mm512_dpbf16_ps(acc[r][k], xs[r], av);
    }
  }
  for (int r = 0; r < NR; ++r)
    for (int k = 0; k < NK; ++k) h[r][k] = sum(reinterpret_cast<f32v>(acc[r][k]));
}
#endif

template <int NR, typename T>
inline void shrink_rows(const T* const* x, const T* a, int64_t num_in, int rank, float* const* h) {
  int k = 0;
  float* at[NR];
  for (; k + RANKS <= rank; k += RANKS) {
    for (int r = 0; r < NR; ++r) at[r] = h[r] + k;
    shrink_tile<NR, RANKS>(x, a + k * num_in, num_in, at);
  }
  for (; k < rank; ++k) {
    for (int r = 0; r < NR; ++r) at[r] = h[r] + k;
    shrink_tile<NR, 1>(x, a + k * num_in, num_in, at);
  }
}

// y[row][first..last) += scale * h[row] B, B [rank, width].
template <int NR, typename T>
inline void expand_rows(T* const* y, const float* const* h, const T* b, int64_t width, int rank,
                        int64_t first, int64_t last, float scale) {
  int64_t o = first;
  for (; o + VECS * LANES <= last; o += VECS * LANES) {
    f32v acc[NR][VECS] = {};
    for (int k = 0; k < rank; ++k) {
      f32v bs[VECS];
      for (int v = 0; v < VECS; ++v) bs[v] = load(b + k * width + o + v * LANES);
      for (int r = 0; r < NR; ++r)
        for (int v = 0; v < VECS; ++v) acc[r][v] += h[r][k] * bs[v];
    }
    for (int r = 0; r < NR; ++r)
      for (int v = 0; v < VECS; ++v) {
        T* out = y[r] + o + v * LANES;
        store(load(out) + scale * acc[r][v], out);
      }
  }
  for (; o < last; ++o)
    for (int r = 0; r < NR; ++r) {
      float total = 0;
      for (int k = 0; k < rank; ++k) total += h[r][k] * to_float(b[k * width + o]);
      from_float(to_float(y[r][o]) + scale * total, y[r] + o);
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

  float* h_at(int tile, int slice, int row) const {
    return batch.h + ((static_cast<int64_t>(tile) * layer.num_slices + slice) * ROWS + row) *
                         layer.max_rank;
  }

  int rows_of(int tile) const {
    int n = 0;
    while (n < ROWS && batch.rows[tile * ROWS + n] >= 0) ++n;
    return n;
  }

  void shrink(int tile, int slice) const {
    const int slot = batch.slots[tile], n = rows_of(tile);
    const int rank = layer.ranks[slice * layer.num_slots + slot];
    if (rank == 0) return;
    const T* xs[ROWS];
    float* hs[ROWS];
    for (int r = 0; r < n; ++r) {
      xs[r] = x + batch.rows[tile * ROWS + r] * x_stride;
      hs[r] = h_at(tile, slice, r);
    }
    const T* at = static_cast<const T*>(layer.a[slice]) +
                  static_cast<int64_t>(slot) * layer.max_rank * layer.num_in;
    switch (n) {
      case 1: return shrink_rows<1>(xs, at, layer.num_in, rank, hs);
      case 2: return shrink_rows<2>(xs, at, layer.num_in, rank, hs);
      case 3: return shrink_rows<3>(xs, at, layer.num_in, rank, hs);
      default: return shrink_rows<4>(xs, at, layer.num_in, rank, hs);
    }
  }

  void expand(int tile, int slice, int64_t offset, int64_t first, int64_t last) const {
    const int slot = batch.slots[tile], n = rows_of(tile);
    const int rank = layer.ranks[slice * layer.num_slots + slot];
    if (rank == 0) return;
    T* ys[ROWS];
    const float* hs[ROWS];
    for (int r = 0; r < n; ++r) {
      ys[r] = y + batch.rows[tile * ROWS + r] * y_stride + offset;
      hs[r] = h_at(tile, slice, r);
    }
    const int64_t width = layer.widths[slice];
    const T* bt =
        static_cast<const T*>(layer.b[slice]) + static_cast<int64_t>(slot) * layer.max_rank * width;
    switch (n) {
      case 1: return expand_rows<1>(ys, hs, bt, width, rank, first, last, scale);
      case 2: return expand_rows<2>(ys, hs, bt, width, rank, first, last, scale);
      case 3: return expand_rows<3>(ys, hs, bt, width, rank, first, last, scale);
      default: return expand_rows<4>(ys, hs, bt, width, rank, first, last, scale);
    }
  }

  void run() const {
    constexpr int64_t CHUNK = 8 * VECS * LANES;  // outputs per task
    int64_t chunks = 0;
    for (int s = 0; s < layer.num_slices; ++s) chunks += (layer.widths[s] + CHUNK - 1) / CHUNK;
    int64_t outputs = 0;
    for (int s = 0; s < layer.num_slices; ++s) outputs += layer.widths[s];
    const int64_t products = static_cast<int64_t>(batch.num_tiles) * ROWS * layer.max_rank *
                             (layer.num_slices * layer.num_in + outputs);
    // Below this, waking other threads costs more than it saves.
#pragma omp parallel if (products > 500000)
    {
#pragma omp for collapse(2) schedule(static)
      for (int s = 0; s < layer.num_slices; ++s)
        for (int t = 0; t < batch.num_tiles; ++t) shrink(t, s);
      // Tiles inside, so that a chunk of B is read once for all rows of its adapter.
#pragma omp for schedule(static)
      for (int64_t c = 0; c < chunks; ++c) {
        int64_t chunk = c, offset = 0;
        int s = 0;
        for (; chunk >= (layer.widths[s] + CHUNK - 1) / CHUNK; ++s) {
          chunk -= (layer.widths[s] + CHUNK - 1) / CHUNK;
          offset += layer.widths[s];
        }
        const int64_t first = chunk * CHUNK;
        const int64_t last = first + CHUNK < layer.widths[s] ? first + CHUNK : layer.widths[s];
        for (int t = 0; t < batch.num_tiles; ++t) expand(t, s, offset, first, last);
      }
    }
  }
};

}  // namespace

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
