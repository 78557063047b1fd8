// Causal attention for training in bfloat16 on a CPU with AMX tiles, forward and backward, without a
// matrix of scores in memory (Dao et al. 2022): the backward pass works the probabilities out again
// from the queries, the keys and each query's log-sum-exp.
//
// A product of tiles takes A by rows, 16 x 32 bfloat16, and B with two consecutive rows interleaved,
// 16 pairs x 16 columns; C is 16 x 16 float32 (Intel, Architecture Instruction Set Extensions, AMX).
// B is "crossed" here when its columns are rows of the source (Q K^T), "paired" when they are its
// columns (P V). Sums and exponentials are float32.
//
// Notation: H query heads, K key-value heads, W head width (a multiple of 32); a
// segment has T queries, which are the last of S places: P = S - T of them are its prefix's.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

typedef uint16_t num;

constexpr int64_t QUERIES = 32;  // of one block of the forward pass
constexpr int64_t BLOCK = 64;    // queries and keys of one block of the backward pass
constexpr float NOTHING = -3.0e38f;
constexpr float LOG2_E = 1.44269504f;

inline float up(num x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline int64_t padded(int64_t n) { return (n + BLOCK - 1) / BLOCK * BLOCK; }

// The first n of 16 elements.
inline __mmask16 first(int64_t n) {
    return n >= 16 ? 0xffff : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1);
}

inline void store_16(num* to, __m512 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}

// Aligned memory of one kind, as long as the thread's part of a call.
template <typename T>
class Scratch {
  public:
    explicit Scratch(int64_t count)
        : data_(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {}
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    operator T*() const { return data_; }

  private:
    T* data_;
};

// All eight tiles 16 rows of 64 bytes. What was configured before comes back: oneDNN keeps its own.
class Tiles {
  public:
    Tiles() {
        _tile_storeconfig(before_);
        alignas(64) uint8_t config[64] = {1};
        for (int i = 0; i < 8; ++i) {
            config[16 + 2 * i] = 64;
            config[48 + i] = 16;
        }
        _tile_loadconfig(config);
    }
    ~Tiles() {
        if (before_[0])
            _tile_loadconfig(before_);
        else
            _tile_release();
    }

  private:
    alignas(64) uint8_t before_[64];
};

// C [32 x 32] (+)= A [32 x depth] B [depth x 32]. A has rows of `a_row` elements; tile (d, j) of B, 32
// deep and 16 wide, lies at b + d * b_deep + j * b_wide; C has rows of `c_row` floats.
inline void multiply(float* c, int64_t c_row, const num* a, int64_t a_row, const num* b,
                     int64_t b_deep, int64_t b_wide, int64_t depth, bool add) {
    if (add) {
        _tile_loadd(0, c, c_row * 4);
        _tile_loadd(1, c + 16, c_row * 4);
        _tile_loadd(2, c + 16 * c_row, c_row * 4);
        _tile_loadd(3, c + 16 * c_row + 16, c_row * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t d = 0; d < depth / 32; ++d) {
        _tile_loadd(4, a + d * 32, a_row * 2);
        _tile_loadd(5, a + 16 * a_row + d * 32, a_row * 2);
        _tile_loadd(6, b + d * b_deep, 64);
        _tile_loadd(7, b + d * b_deep + b_wide, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_row * 4);
    _tile_stored(1, c + 16, c_row * 4);
    _tile_stored(2, c + 16 * c_row, c_row * 4);
    _tile_stored(3, c + 16 * c_row + 16, c_row * 4);
}

constexpr int64_t TILE = 512;  // elements of one tile of B

// Rows and columns of 16 x 16 elements of 32 bits exchanged, in registers.
inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i)
        for (int half = 0; half < 16; half += 8) {
            t[half + i] = _mm512_shuffle_i32x4(r[half + i], r[half + 4 + i], 0x88);
            t[half + 4 + i] = _mm512_shuffle_i32x4(r[half + i], r[half + 4 + i], 0xdd);
        }
    for (int i = 0; i < 8; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    }
}

// Rows [N x W] as B of a product with their transpose: tile (d, n) holds columns 32 d.. of rows 16 n..,
// at out + (n * W / 32 + d) * TILE. `row` is the source's stride; rows from `count` to N are zero.
void cross(const num* x, int64_t row, int64_t count, int64_t N, int64_t W, num* out) {
    for (int64_t n = 0; n < N; n += 16)
        for (int64_t d = 0; d < W; d += 32, out += TILE) {
            __m512i lines[16];
            for (int64_t i = 0; i < 16; ++i)
                lines[i] = n + i < count ? _mm512_loadu_si512(x + (n + i) * row + d)
                                         : _mm512_setzero_si512();
            transpose(lines);
            for (int64_t i = 0; i < 16; ++i) _mm512_store_si512(out + i * 32, lines[i]);
        }
}

// Rows [W x N] of what `cross` made of rows [N x W].
void uncross(const num* crossed, int64_t N, int64_t W, num* out) {
    for (int64_t n = 0; n < N; n += 16)
        for (int64_t d = 0; d < W; d += 32, crossed += TILE)
            for (int64_t i = 0; i < 16; ++i) {
                const __m512i line = _mm512_load_si512(crossed + i * 32);
                __m256i* even = reinterpret_cast<__m256i*>(out + (d + 2 * i) * N + n);
                __m256i* odd = reinterpret_cast<__m256i*>(out + (d + 2 * i + 1) * N + n);
                _mm256_storeu_si256(even, _mm512_cvtepi32_epi16(line));
                _mm256_storeu_si256(odd, _mm512_cvtepi32_epi16(_mm512_srli_epi32(line, 16)));
            }
}

// Rows [N x W] as B of a product with them: tile (d, j) holds rows 32 d.. and columns 16 j.., at
// out + (d * W / 16 + j) * TILE.
void pair(const num* x, int64_t row, int64_t count, int64_t N, int64_t W, num* out) {
    const auto line = [&](int64_t n, int64_t w) {
        const __m256i* at = reinterpret_cast<const __m256i*>(x + n * row + w);
        return n < count ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(at)) : _mm512_setzero_si512();
    };
    for (int64_t n = 0; n < N; n += 2)
        for (int64_t w = 0; w < W; w += 16) {
            num* to = out + (n / 32 * (W / 16) + w / 16) * TILE + n % 32 * 16;
            const __m512i second = _mm512_slli_epi32(line(n + 1, w), 16);
            _mm512_store_si512(to, _mm512_or_si512(line(n, w), second));
        }
}

// 2^x for x up to 0 or so, to about 2e-7 of it: the fraction's series to the sixth power.
inline __m512 exp2_16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);  // this way round what is no number stays none
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(1.5403530e-4f);
    for (const float c : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f,
                          1.0f})
        y = _mm512_fmadd_ps(y, f, _mm512_set1_ps(c));
    return _mm512_scalef_ps(y, whole);
}

// Behind each other, the prefix's rows and the segment's own of one key-value head; zeros up to N.
void gather(const num* prefix, int64_t P, const num* own, int64_t T, int64_t N, int64_t W, num* out) {
    if (P) std::memcpy(out, prefix, P * W * sizeof(num));
    std::memcpy(out + P * W, own, T * W * sizeof(num));
    std::memset(out + (P + T) * W, 0, (N - P - T) * W * sizeof(num));
}

struct Segment {
    int64_t start, length, prefix_start, prefix_length;
};

struct Shape {
    int64_t H, K, W;
    float scale;
};

// Where a head of a segment's rows begins in a tensor of `heads` heads, head-major a segment.
inline int64_t place(int64_t start, int64_t length, int64_t heads, int64_t head, int64_t W) {
    return start * heads * W + head * length * W;
}

void forward(const Segment& s, int64_t g, const Shape& shape, const num* q, const num* k,
             const num* v, num* context, float* lse) {
    const int64_t W = shape.W, P = s.prefix_length, T = s.length, S = P + T, N = padded(S);
    const int64_t deep = W / 32, wide = W / 16, group = shape.H / shape.K;
    Scratch<num> rows(N * W), crossed(N * W), paired(N * W), weights(QUERIES * N);
    Scratch<num> query(QUERIES * W);
    Scratch<float> scores(QUERIES * N), out(QUERIES * W);
    const int64_t prefix = place(s.prefix_start, P, shape.K, g, W);
    const int64_t own = place(s.start, T, shape.K, g, W);
    gather(k + prefix, P, k + own, T, N, W, rows);
    cross(rows, W, S, N, W, crossed);
    gather(v + prefix, P, v + own, T, N, W, rows);
    pair(rows, W, S, N, W, paired);

    for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        const num* mine = q + place(s.start, T, shape.H, h, W);
        for (int64_t t = 0; t < T; t += QUERIES) {
            const int64_t count = std::min(QUERIES, T - t);
            std::memcpy(query, mine + t * W, count * W * sizeof(num));
            std::memset(query + count * W, 0, (QUERIES - count) * W * sizeof(num));
            const int64_t seen = (P + t + count + 31) / 32 * 32;
            for (int64_t n = 0; n < seen; n += 32)
                multiply(scores + n, N, query, W, crossed + n / 16 * deep * TILE, TILE,
                         deep * TILE, W, false);
            float inverse[QUERIES] = {};
            for (int64_t i = 0; i < QUERIES; ++i) {
                float* line = scores + i * N;
                num* to = weights + i * N;
                const int64_t n = i < count ? P + t + i + 1 : 0;
                float top = NOTHING;
                for (int64_t j = 0; j < n; ++j) top = line[j] > top ? line[j] : top;
                __m512 sums = _mm512_setzero_ps();
                const __m512 by = _mm512_set1_ps(shape.scale * LOG2_E);
                const __m512 less = _mm512_set1_ps(top * shape.scale * LOG2_E);
                for (int64_t j = 0; j < seen; j += 16) {
                    const __m512 x = _mm512_fmsub_ps(_mm512_load_ps(line + j), by, less);
                    const __m512 e = _mm512_maskz_mov_ps(first(n - j), exp2_16(x));
                    sums = _mm512_add_ps(sums, e);
                    store_16(to + j, e);
                }
                if (i >= count) continue;
                const float sum = _mm512_reduce_add_ps(sums);
                inverse[i] = 1.0f / sum;
                lse[h * T + t + i] = top * shape.scale + std::log(sum);
            }
            for (int64_t w = 0; w < W; w += 32)
                multiply(out + w, W, weights, N, paired + w / 16 * TILE, wide * TILE, TILE, seen,
                         false);
            for (int64_t i = 0; i < count; ++i) {
                num* to = context + (s.start + t + i) * shape.H * W + h * W;
                const __m512 by = _mm512_set1_ps(inverse[i]);
                for (int64_t w = 0; w < W; w += 16)
                    store_16(to + w, _mm512_mul_ps(_mm512_load_ps(out + i * W + w), by));
            }
        }
    }
}

// Gradients of one key-value head of a segment: dq of its group's heads, and dk and dv of all S places,
// float32 [S x W].
void backward(const Segment& s, int64_t g, const Shape& shape, const num* q, const num* k,
              const num* v, const num* context, const num* d_context, const float* lse, num* dq,
              float* dk, float* dv) {
    const int64_t W = shape.W, P = s.prefix_length, T = s.length, S = P + T;
    const int64_t N = padded(S), M = padded(T);
    const int64_t deep = W / 32, wide = W / 16, group = shape.H / shape.K, row = shape.H * W;
    Scratch<num> keys(N * W), values(N * W), keys_down(W * N), crossed(N * W);
    Scratch<num> q_crossed(M * W), q_paired(M * W), o_crossed(M * W), o_paired(M * W);
    Scratch<num> p(BLOCK * BLOCK), ds(BLOCK * BLOCK), ds_paired(BLOCK * BLOCK);
    Scratch<float> scores(BLOCK * BLOCK), dp(BLOCK * BLOCK), dq_down(W * M), found(M), drop(M);
    const int64_t prefix = place(s.prefix_start, P, shape.K, g, W);
    const int64_t own = place(s.start, T, shape.K, g, W);
    gather(k + prefix, P, k + own, T, N, W, keys);
    gather(v + prefix, P, v + own, T, N, W, values);
    cross(keys, W, S, N, W, crossed);
    uncross(crossed, N, W, keys_down);
    std::memset(dk, 0, N * W * sizeof(float));
    std::memset(dv, 0, N * W * sizeof(float));

    for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        const int64_t head = place(s.start, T, shape.H, h, W);
        const num* out = context + s.start * row + h * W;
        const num* d_out = d_context + s.start * row + h * W;
        cross(q + head, W, T, M, W, q_crossed);
        pair(q + head, W, T, M, W, q_paired);
        cross(d_out, row, T, M, W, o_crossed);
        pair(d_out, row, T, M, W, o_paired);
        for (int64_t t = 0; t < M; ++t) {
            float sum = 0;
            if (t < T)
                for (int64_t w = 0; w < W; ++w) sum += up(out[t * row + w]) * up(d_out[t * row + w]);
            drop[t] = sum;
            found[t] = t < T ? lse[h * T + t] * LOG2_E : 0;
        }
        std::memset(dq_down, 0, W * M * sizeof(float));

        for (int64_t n = 0; n < N; n += BLOCK) {
            for (int64_t t = std::max<int64_t>(0, n - P) / BLOCK * BLOCK; t < T; t += BLOCK) {
                // Keys by queries: probabilities need no sum over a row then, and are A as they lie.
                for (int64_t i = 0; i < BLOCK; i += 32)
                    for (int64_t j = 0; j < BLOCK; j += 32) {
                        const int64_t at = (t + j) / 16 * deep * TILE;
                        float* to = scores + i * BLOCK + j;
                        multiply(to, BLOCK, keys + (n + i) * W, W, q_crossed + at, TILE,
                                 deep * TILE, W, false);
                        to = dp + i * BLOCK + j;
                        multiply(to, BLOCK, values + (n + i) * W, W, o_crossed + at, TILE,
                                 deep * TILE, W, false);
                    }
                const __m512 scale = _mm512_set1_ps(shape.scale);
                const __m512 by = _mm512_set1_ps(shape.scale * LOG2_E);
                for (int64_t i = 0; i < BLOCK; ++i) {
                    // Key n + i is seen by the queries from this one on.
                    const int64_t from = n + i - P - t;
                    for (int64_t j = 0; j < BLOCK; j += 16) {
                        const __mmask16 seen = first(T - t - j) & ~first(from - j);
                        const int64_t at = i * BLOCK + j;
                        const __m512 x = _mm512_fmsub_ps(_mm512_load_ps(scores + at), by,
                                                         _mm512_load_ps(found + t + j));
                        const __m512 e = _mm512_maskz_mov_ps(seen, exp2_16(x));
                        const __m512 less = _mm512_load_ps(drop + t + j);
                        const __m512 d = _mm512_sub_ps(_mm512_load_ps(dp + at), less);
                        store_16(p + at, e);
                        store_16(ds + at, _mm512_mul_ps(_mm512_mul_ps(e, d), scale));
                    }
                }
                pair(ds, BLOCK, BLOCK, BLOCK, BLOCK, ds_paired);
                for (int64_t i = 0; i < BLOCK; i += 32)
                    for (int64_t w = 0; w < W; w += 32) {
                        const int64_t at = t / 32 * wide * TILE + w / 16 * TILE;
                        multiply(dv + (n + i) * W + w, W, p + i * BLOCK, BLOCK, o_paired + at,
                                 wide * TILE, TILE, BLOCK, true);
                        multiply(dk + (n + i) * W + w, W, ds + i * BLOCK, BLOCK, q_paired + at,
                                 wide * TILE, TILE, BLOCK, true);
                    }
                for (int64_t w = 0; w < W; w += 32)
                    for (int64_t j = 0; j < BLOCK; j += 32)
                        multiply(dq_down + w * M + t + j, M, keys_down + w * N + n, N,
                                 ds_paired + j / 16 * TILE, BLOCK / 16 * TILE, TILE, BLOCK, true);
            }
        }
        for (int64_t t = 0; t < T; t += 16)
            for (int64_t w = 0; w < W; w += 16) {
                __m512i lines[16];
                for (int64_t i = 0; i < 16; ++i)
                    lines[i] = _mm512_load_si512(dq_down + (w + i) * M + t);
                transpose(lines);
                for (int64_t i = 0; i < 16 && t + i < T; ++i)
                    store_16(dq + head + (t + i) * W + w, _mm512_castsi512_ps(lines[i]));
            }
    }
}

}  // namespace

extern "C" {

// Context rows [rows, H W] and log-sum-exp [rows H], head-major a segment. q [rows H W], k and v
// [rows K W] are head-major a segment; `segments` [count, 4] holds start and length of each segment
// and of its prefix, which lies before it (length 0: none).
void attend(const num* q, const num* k, const num* v, const int64_t* segments, num* context,
            float* lse, int64_t count, int64_t H, int64_t K, int64_t W, float scale) {
    const Shape shape{H, K, W, scale};
#pragma omp parallel
    {
        Tiles tiles;
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < count * K; ++task) {
            Segment s;
            std::memcpy(&s, segments + task / K * 4, sizeof(s));
            forward(s, task % K, shape, q, k, v, context, lse + s.start * H);
        }
    }
}

// Gradients dq, dk, dv, laid out as q, k and v: those of a prefix are the sum of everybody's.
void attend_backward(const num* q, const num* k, const num* v, const num* context,
                     const num* d_context, const float* lse, const int64_t* segments, num* dq,
                     num* dk, num* dv, int64_t count, int64_t H, int64_t K, int64_t W,
                     float scale) {
    const Shape shape{H, K, W, scale};
    const Segment* all = reinterpret_cast<const Segment*>(segments);
    // Each task keeps the gradients of its keys and values until all are there: the sum of a prefix
    // has the same order however many threads there are.
    std::vector<int64_t> at(count + 1, 0);
    for (int64_t i = 0; i < count; ++i)
        at[i + 1] = at[i] + padded(all[i].prefix_length + all[i].length) * K * W;
    Scratch<float> keys(at[count]), values(at[count]);
#pragma omp parallel
    {
        {
            Tiles tiles;
#pragma omp for schedule(dynamic)
            for (int64_t task = 0; task < count * K; ++task) {
                const int64_t i = task / K, g = task % K;
                const int64_t mine = at[i] + (at[i + 1] - at[i]) / K * g;
                backward(all[i], g, shape, q, k, v, context, d_context, lse + all[i].start * H, dq,
                         keys + mine, values + mine);
            }
        }
#pragma omp for schedule(dynamic)
        for (int64_t task = 0; task < count * K; ++task) {
            const int64_t i = task / K, g = task % K, length = all[i].length;
            const int64_t to = place(all[i].start, length, K, g, W);
            for (float* found : {static_cast<float*>(keys), static_cast<float*>(values)}) {
                float* mine = found + at[i] + (at[i + 1] - at[i]) / K * g + all[i].prefix_length * W;
                for (int64_t o = 0; o < count; ++o) {
                    if (!all[o].prefix_length || all[o].prefix_start != all[i].start) continue;
                    const float* theirs = found + at[o] + (at[o + 1] - at[o]) / K * g;
                    for (int64_t j = 0; j < length * W; ++j) mine[j] += theirs[j];
                }
                num* out = (found == keys ? dk : dv) + to;
                for (int64_t j = 0; j < length * W; j += 16)
                    store_16(out + j, _mm512_loadu_ps(mine + j));
            }
        }
    }
}

}  // extern "C"
