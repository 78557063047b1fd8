// Fused kernels for LoRA training on CPU, in bfloat16 or, compiled with -DFLOAT32, in float32. Plain
// C interface: no torch headers, so it compiles in two seconds, and Python calls it by ctypes with
// tensors' addresses.
//
// All matrices are row-major and contiguous; sums and exponentials are float32.
// Notation: M rows (tokens), D hidden width, F feed-forward width, B sequences of T tokens,
// H query heads, K key-value heads, W head width.

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef FLOAT32

typedef float num;

static inline float up(num x) { return x; }
static inline num down(float f) { return f; }

#else

typedef uint16_t num;

static inline float up(num x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

static inline num down(float f) {  // round to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return static_cast<num>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#endif

extern "C" {

// y = x * r * w with r = 1 / sqrt(mean(x^2) + eps)  (Zhang and Sennrich 2019)
void rms_norm(const num* x, const num* w, num* y, float* r, int64_t M, int64_t D, float eps) {
#pragma omp parallel for
    for (int64_t m = 0; m < M; ++m) {
        const num* xm = x + m * D;
        num* ym = y + m * D;
        float sum = 0;
        for (int64_t d = 0; d < D; ++d) sum += up(xm[d]) * up(xm[d]);
        const float rm = 1.0f / std::sqrt(sum / D + eps);
        r[m] = rm;
        for (int64_t d = 0; d < D; ++d) ym[d] = down(up(down(up(xm[d]) * rm)) * up(w[d]));
    }
}

// dx = skip + gradient of rms_norm; `skip` is the residual's gradient. dx may be dy's memory.
void rms_norm_backward(const num* dy, const num* x, const num* w, const float* r,
                       const num* skip, num* dx, int64_t M, int64_t D) {
#pragma omp parallel for
    for (int64_t m = 0; m < M; ++m) {
        const num *xm = x + m * D, *gm = dy + m * D, *sm = skip + m * D;
        num* om = dx + m * D;
        const float rm = r[m];
        float dot = 0;
        for (int64_t d = 0; d < D; ++d) dot += up(gm[d]) * up(w[d]) * up(xm[d]);
        const float c = dot * rm * rm / D;
        for (int64_t d = 0; d < D; ++d)
            om[d] = down(up(sm[d]) + rm * (up(gm[d]) * up(w[d]) - up(xm[d]) * c));
    }
}

// a = silu(gate) * up; gu holds [gate | up] in each row of 2F.
void swiglu(const num* gu, num* a, int64_t M, int64_t F) {
#pragma omp parallel for
    for (int64_t m = 0; m < M; ++m) {
        const num *g = gu + m * 2 * F, *u = g + F;
        num* am = a + m * F;
        for (int64_t f = 0; f < F; ++f) {
            const float z = up(g[f]);
            am[f] = down(z / (1.0f + std::exp(-z)) * up(u[f]));
        }
    }
}

// dgu becomes the gradient of gu; in place, da becomes a (which the adapter's gradient needs).
void swiglu_backward(const num* gu, num* dgu, num* da, int64_t M, int64_t F) {
#pragma omp parallel for
    for (int64_t m = 0; m < M; ++m) {
        const num *g = gu + m * 2 * F, *u = g + F;
        num *dg = dgu + m * 2 * F, *du = dg + F, *d = da + m * F;
        for (int64_t f = 0; f < F; ++f) {
            const float z = up(g[f]), v = up(u[f]), grad = up(d[f]);
            const float s = 1.0f / (1.0f + std::exp(-z));
            const float silu = z * s;
            dg[f] = down(grad * v * (s + silu * (1.0f - s)));
            du[f] = down(grad * silu);
            d[f] = down(silu * v);
        }
    }
}

// Rotate queries and keys (Su et al. 2021, halves convention) and split rows of [q | k | v] into
// heads. A segment of L rows that starts at row `first` becomes q [H,L,W] at q + first*H*W, and so
// for k and v [K,L,W]; `segments` holds (first, L) of each row's segment. cos and sin are [M,W/2].
// back != 0 goes the other way: from head-major gradients to rows, rotating by the negative angle.
void rotate_split(num* qkv, num* q, num* k, num* v, const int64_t* segments, const float* cos,
                  const float* sin, int64_t M, int64_t H, int64_t K, int64_t W, int32_t back) {
    const int64_t half = W / 2, row = (H + 2 * K) * W;
#pragma omp parallel for
    for (int64_t m = 0; m < M; ++m) {
        const int64_t first = segments[2 * m], L = segments[2 * m + 1], t = m - first;
        const float *c = cos + m * half, *s = sin + m * half;
        for (int64_t h = 0; h < H + 2 * K; ++h) {
            num* mine = qkv + m * row + h * W;
            num* theirs = h < H       ? q + (first * H + h * L + t) * W
                           : h < H + K ? k + (first * K + (h - H) * L + t) * W
                                       : v + (first * K + (h - H - K) * L + t) * W;
            const num* from = back ? theirs : mine;
            num* to = back ? mine : theirs;
            if (h >= H + K) {
                std::memcpy(to, from, W * sizeof(num));
                continue;
            }
            const float sign = back ? -1.0f : 1.0f;
            for (int64_t i = 0; i < half; ++i) {
                const float x = up(from[i]), y = up(from[half + i]), si = sign * s[i];
                to[i] = down(x * c[i] - y * si);
                to[half + i] = down(y * c[i] + x * si);
            }
        }
    }
}

// In place softmax of scores [N,T,S]: query t is place S-T+t and sees the places up to itself; what
// is masked becomes zero.
void causal_softmax(num* scores, int64_t N, int64_t T, int64_t S, float scale) {
#pragma omp parallel for
    for (int64_t i = 0; i < N * T; ++i) {
        num* s = scores + i * S;
        const int64_t n = S - T + i % T + 1;
        float top = -3.0e38f, sum = 0;
        for (int64_t j = 0; j < n; ++j) {
            const float x = up(s[j]);
            top = x > top ? x : top;
        }
        for (int64_t j = 0; j < n; ++j) {
            const float e = std::exp((up(s[j]) - top) * scale);
            sum += e;
            s[j] = down(e);
        }
        const float inverse = 1.0f / sum;
        for (int64_t j = 0; j < n; ++j) s[j] = down(up(s[j]) * inverse);
        for (int64_t j = n; j < S; ++j) s[j] = 0;
    }
}

// In place: the gradient of probabilities p becomes that of the unscaled scores.
void causal_softmax_backward(const num* p, num* grad, int64_t N, int64_t T, int64_t S,
                             float scale) {
#pragma omp parallel for
    for (int64_t i = 0; i < N * T; ++i) {
        const num* pi = p + i * S;
        num* g = grad + i * S;
        const int64_t n = S - T + i % T + 1;
        float dot = 0;
        for (int64_t j = 0; j < n; ++j) dot += up(pi[j]) * up(g[j]);
        for (int64_t j = 0; j < n; ++j) g[j] = down(scale * up(pi[j]) * (up(g[j]) - dot));
        for (int64_t j = n; j < S; ++j) g[j] = 0;
    }
}

// Loss of each row, -log softmax(logits)[target]; in place, logits become softmax - onehot.
void cross_entropy(num* logits, const int64_t* targets, float* losses, int64_t N, int64_t V,
                   int32_t with_gradient) {
#pragma omp parallel for
    for (int64_t i = 0; i < N; ++i) {
        num* l = logits + i * V;
        float top = -3.0e38f, sum = 0;
        for (int64_t v = 0; v < V; ++v) {
            const float x = up(l[v]);
            top = x > top ? x : top;
        }
        for (int64_t v = 0; v < V; ++v) sum += std::exp(up(l[v]) - top);
        const float log_sum = top + std::log(sum);
        const float hit = up(l[targets[i]]) - log_sum;
        losses[i] = -hit;
        if (!with_gradient) continue;
        for (int64_t v = 0; v < V; ++v) l[v] = down(std::exp(up(l[v]) - log_sum));
        l[targets[i]] = down(std::exp(hit) - 1.0f);
    }
}

}  // extern "C"
