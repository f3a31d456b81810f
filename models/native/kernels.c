/* Layers of a Transformer over few positions: what PyTorch spends on calling dozens of small kernels, this does not.
 *
 * All threads go through the same phases, each computing its share of the columns of a product or of the heads of an
 * attention, with a barrier between phases. Every sum is over the same terms in the same order whatever the number of
 * threads or rows, so that a row's result depends on nothing but the row. Letters in shapes as in models.interface. */

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define LANES 16

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
    const float *weight; /* [outputs, inputs] */
    const float *bias;   /* [outputs] */
    int64_t outputs, inputs;
} Linear;

typedef struct {
    const float *weight, *bias; /* [d] */
} Norm;

typedef struct {
    Norm self_norm, cross_norm, feed_norm;
    Linear query, key_value, self_output, cross_query, cross_output, inner, outer;
} Layer;

typedef struct {
    float *keys, *values;
    int64_t row, head, position; /* strides in floats; features of a head lie side by side */
} KeyValues;

typedef struct {
    const Layer *layers;
    const KeyValues *caches;   /* by layer: earlier positions, to which the new ones are appended; or none */
    const KeyValues *memories; /* by layer: what cross-attention attends to; or none */
    const uint8_t *self_mask;  /* [b, t]: positions that may be attended to; or none for all */
    const uint8_t *cross_mask; /* [m, s]; or none */
    float *x;                  /* [b, t, d], in and out */
    float *scratch;            /* see scratch_floats */
    double epsilon;
    int64_t depth, b, t, d, heads, hidden;
    int64_t cached; /* positions in the caches */
    int64_t m, s;   /* rows and positions of the memory; b is a multiple of m */
    int64_t self_stride, cross_stride; /* between rows of the masks */
    int64_t pre_norm, causal, threads, available;
} Call;

typedef struct {
    Linear layer;
    const float *x;     /* [n, inputs] */
    const float *added; /* [n, outputs], or none */
    float *y;           /* [n, outputs] */
    int64_t n, relu, threads;
} Product;

typedef struct Team {
    void (*task)(struct Team *, int64_t thread);
    const Product *product; /* of either, the one that is to be done */
    const Call *call;
    float *query, *key_value, *mixed, *hidden, *own;
    int64_t own_floats;
    int wanted;
    _Atomic int arrived, generation, threads;
} Team;

/* ---- threads ---- */

/* Of the OpenMP that PyTorch runs on, whose threads are there already. */
static void (*parallel)(void (*)(void *), void *, unsigned, unsigned); /* GOMP_parallel */
static int (*team_size)(void), (*thread_number)(void);                 /* omp_get_num_threads, omp_get_thread_num */

void set_runtime(void *start, void *size, void *number) {
    parallel = (void (*)(void (*)(void *), void *, unsigned, unsigned))start;
    team_size = (int (*)(void))size;
    thread_number = (int (*)(void))number;
}

static void barrier(Team *team) {
    int threads = atomic_load_explicit(&team->threads, memory_order_relaxed);
    if (threads == 1)
        return;
    int generation = atomic_load_explicit(&team->generation, memory_order_acquire);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == threads - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->generation, generation + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->generation, memory_order_acquire) == generation; spins++) {
        if (spins > 2000) /* others may need this core */
            sched_yield();
    }
}

static void share(int64_t count, int64_t unit, int64_t thread, int64_t threads, int64_t *from, int64_t *to) {
    int64_t units = (count + unit - 1) / unit;
    *from = units * thread / threads * unit;
    *to = units * (thread + 1) / threads * unit;
    if (*to > count)
        *to = count;
}

/* ---- products ---- */

typedef float half __attribute__((vector_size(4 * LANES / 2)));
typedef float quarter __attribute__((vector_size(4 * LANES / 4)));

static inline float sum(lanes v) {
    half parts[2];
    quarter smaller[2];
    __builtin_memcpy(parts, &v, sizeof v);
    parts[0] += parts[1];
    __builtin_memcpy(smaller, parts, sizeof smaller);
    smaller[0] += smaller[1];
    return (smaller[0][0] + smaller[0][2]) + (smaller[0][1] + smaller[0][3]);
}

/* y[a][o] = act(x[a] . weight[o] + bias[o]) + added[a][o] for a tile of ROWS inputs and COLUMNS outputs. */
#define TILE(ROWS, COLUMNS)                                                                                            \
    static inline __attribute__((always_inline)) void tile_##ROWS##_##COLUMNS(                                         \
        const float *weight, const float *x, int64_t n, float out[ROWS][COLUMNS]) {                                    \
        lanes total[ROWS][COLUMNS];                                                                                    \
        _Pragma("GCC unroll 8") for (int a = 0; a < ROWS; a++)                                                         \
            _Pragma("GCC unroll 8") for (int o = 0; o < COLUMNS; o++) total[a][o] = (lanes){0};                        \
        int64_t i = 0;                                                                                                 \
        for (; i + LANES <= n; i += LANES) {                                                                           \
            lanes w[COLUMNS];                                                                                          \
            _Pragma("GCC unroll 8") for (int o = 0; o < COLUMNS; o++) w[o] = *(const lanes *)(weight + o * n + i);     \
            _Pragma("GCC unroll 8") for (int a = 0; a < ROWS; a++) {                                                   \
                lanes v = *(const lanes *)(x + a * n + i);                                                             \
                _Pragma("GCC unroll 8") for (int o = 0; o < COLUMNS; o++) total[a][o] += w[o] * v;                     \
            }                                                                                                          \
        }                                                                                                              \
        for (int a = 0; a < ROWS; a++)                                                                                 \
            for (int o = 0; o < COLUMNS; o++) {                                                                        \
                float s = sum(total[a][o]);                                                                            \
                for (int64_t j = i; j < n; j++)                                                                        \
                    s += weight[o * n + j] * x[a * n + j];                                                             \
                out[a][o] = s;                                                                                         \
            }                                                                                                          \
    }                                                                                                                  \
    static inline __attribute__((always_inline)) void put_##ROWS##_##COLUMNS(                                          \
        const Linear *layer, const float *x, int64_t o, const float *added, int relu, float *y) {                      \
        float out[ROWS][COLUMNS];                                                                                      \
        tile_##ROWS##_##COLUMNS(layer->weight + o * layer->inputs, x, layer->inputs, out);                             \
        for (int a = 0; a < ROWS; a++)                                                                                 \
            for (int c = 0; c < COLUMNS; c++) {                                                                        \
                float value = out[a][c] + (layer->bias ? layer->bias[o + c] : 0);                                      \
                if (relu && value < 0)                                                                                 \
                    value = 0;                                                                                         \
                y[a * layer->outputs + o + c] = added ? added[a * layer->outputs + o + c] + value : value;             \
            }                                                                                                          \
    }

#define ROWS_OF(ROWS, COLUMNS)                                                                                         \
    TILE(ROWS, COLUMNS)                                                                                                \
    TILE(ROWS, 1)                                                                                                      \
    static void rows_##ROWS(const Linear *layer, const float *x, int64_t from, int64_t to, const float *added,         \
                            int relu, float *y) {                                                                      \
        int64_t o = from;                                                                                              \
        for (; o + COLUMNS <= to; o += COLUMNS)                                                                        \
            put_##ROWS##_##COLUMNS(layer, x, o, added, relu, y);                                                       \
        for (; o < to; o++)                                                                                            \
            put_##ROWS##_1(layer, x, o, added, relu, y);                                                               \
    }

ROWS_OF(1, 8)
ROWS_OF(2, 8)
ROWS_OF(3, 6)
ROWS_OF(4, 6)
ROWS_OF(5, 4)
ROWS_OF(6, 4)
ROWS_OF(7, 3)
ROWS_OF(8, 3)

/* This thread's columns of y [n, outputs] for x [n, inputs], of up to eight rows, whose sums stay in registers. */
static void product(const Linear *layer, const float *x, int64_t n, const float *added, int relu, float *y,
                    int64_t thread, int64_t threads) {
    static void (*const tiles[])(const Linear *, const float *, int64_t, int64_t, const float *, int, float *) = {
        rows_1, rows_2, rows_3, rows_4, rows_5, rows_6, rows_7, rows_8};
    int64_t first, last;
    share(layer->outputs, 24, thread, threads, &first, &last);
    tiles[n - 1](layer, x, first, last, added, relu, y);
}

/* ---- norms and attention ---- */

static void normalise(const Norm *norm, const float *x, int64_t n, int64_t d, double epsilon, float *y) {
    for (int64_t a = 0; a < n; a++, x += d, y += d) {
        float mean = 0, square = 0;
        for (int64_t i = 0; i < d; i++)
            mean += x[i];
        mean /= d;
        for (int64_t i = 0; i < d; i++)
            square += (x[i] - mean) * (x[i] - mean);
        float scale = 1 / sqrtf(square / d + (float)epsilon);
        for (int64_t i = 0; i < d; i++)
            y[i] = (x[i] - mean) * scale * norm->weight[i] + norm->bias[i];
    }
}

static inline float dot(const float *a, const float *b, int64_t n) {
    lanes total = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        total += *(const lanes *)(a + i) * *(const lanes *)(b + i);
    float s = sum(total);
    for (; i < n; i++)
        s += a[i] * b[i];
    return s;
}

/* One query [k] of one head over `n` positions; `mask` says which count. Nothing to attend to gives 0, as in PyTorch. */
static void attend(const float *query, const float *keys, const float *restrict values, int64_t position, int64_t n,
                   const uint8_t *mask, int64_t k, float *restrict scores, float *restrict out) {
    float scale = 1 / sqrtf((float)k), highest = -INFINITY, total = 0;
    int any = 0;
    for (int64_t j = 0; j < n; j++) {
        int seen = !mask || mask[j];
        any |= seen;
        scores[j] = seen ? scale * dot(query, keys + j * position, k) : -INFINITY;
        highest = scores[j] > highest ? scores[j] : highest;
    }
    for (int64_t i = 0; i < k; i++)
        out[i] = 0;
    if (!any)
        return;
    for (int64_t j = 0; j < n; j++)
        total += scores[j] = expf(scores[j] - highest);
    for (int64_t j = 0; j < n; j++) {
        float share_of = scores[j] / total;
        if (share_of == 0)
            continue;
        for (int64_t i = 0; i < k; i++)
            out[i] += share_of * values[j * position + i];
    }
}

/* ---- layers ---- */

static void self_attention(Team *team, const KeyValues *cache, int64_t thread, float *scores) {
    const Call *call = team->call;
    int64_t k = call->d / call->heads, t = call->t, from, to;
    share(call->b * call->heads, 1, thread, team->threads, &from, &to);
    for (int64_t index = from; index < to; index++) {
        int64_t row = index / call->heads, head = index % call->heads;
        const float *fresh = team->key_value + row * t * 2 * call->d + head * k;
        const float *keys = fresh, *values = fresh + call->d;
        int64_t position = 2 * call->d, n = t;
        if (cache) {
            float *kept_keys = cache->keys + row * cache->row + head * cache->head;
            float *kept_values = cache->values + row * cache->row + head * cache->head;
            position = cache->position;
            for (int64_t i = 0; i < t; i++)
                for (int64_t f = 0; f < k; f++) {
                    kept_keys[(call->cached + i) * position + f] = fresh[i * 2 * call->d + f];
                    kept_values[(call->cached + i) * position + f] = fresh[i * 2 * call->d + call->d + f];
                }
            keys = kept_keys, values = kept_values, n = call->cached + t;
        }
        const uint8_t *mask = call->self_mask ? call->self_mask + row * call->self_stride : 0;
        for (int64_t i = 0; i < t; i++) {
            int64_t at = (row * t + i) * call->d + head * k;
            attend(team->query + at, keys, values, position, call->causal ? call->cached + i + 1 : n, mask, k, scores,
                   team->mixed + at);
        }
    }
}

static void cross_attention(Team *team, const KeyValues *memory, int64_t thread, float *scores) {
    const Call *call = team->call;
    int64_t k = call->d / call->heads, group = call->b / call->m, from, to;
    share(call->b * call->heads, 1, thread, team->threads, &from, &to);
    for (int64_t index = from; index < to; index++) {
        int64_t row = index / call->heads, head = index % call->heads, source = row / group;
        const uint8_t *mask = call->cross_mask ? call->cross_mask + source * call->cross_stride : 0;
        int64_t start = source * memory->row + head * memory->head;
        for (int64_t i = 0; i < call->t; i++) {
            int64_t at = (row * call->t + i) * call->d + head * k;
            attend(team->query + at, memory->keys + start, memory->values + start, memory->position, call->s, mask, k,
                   scores, team->mixed + at);
        }
    }
}

/* x after a sublayer whose last product is `layer` of `input`; with post-norm the norm of it follows. */
static void residual(Team *team, const Linear *layer, const float *input, const Norm *norm, int64_t thread) {
    const Call *call = team->call;
    int64_t n = call->b * call->t, from, to;
    product(layer, input, n, call->x, 0, call->x, thread, team->threads);
    barrier(team);
    if (!call->pre_norm) {
        share(n, 1, thread, team->threads, &from, &to);
        normalise(norm, call->x + from * call->d, to - from, call->d, call->epsilon, call->x + from * call->d);
        barrier(team);
    }
}

static void pass(Team *team, int64_t thread) {
    const Call *call = team->call;
    int64_t n = call->b * call->t, d = call->d, threads = team->threads;
    float *normed = team->own + thread * team->own_floats, *scores = normed + n * d;
    for (int64_t l = 0; l < call->depth; l++) {
        const Layer *layer = &call->layers[l];
        const float *input = call->x;
        /* Every thread normalises all rows, which takes less than waiting for others. */
        if (call->pre_norm)
            normalise(&layer->self_norm, call->x, n, d, call->epsilon, normed), input = normed;
        product(&layer->query, input, n, 0, 0, team->query, thread, threads);
        product(&layer->key_value, input, n, 0, 0, team->key_value, thread, threads);
        barrier(team);
        self_attention(team, call->caches ? &call->caches[l] : 0, thread, scores);
        barrier(team);
        residual(team, &layer->self_output, team->mixed, &layer->self_norm, thread);
        if (call->memories) {
            input = call->x;
            if (call->pre_norm)
                normalise(&layer->cross_norm, call->x, n, d, call->epsilon, normed), input = normed;
            product(&layer->cross_query, input, n, 0, 0, team->query, thread, threads);
            barrier(team);
            cross_attention(team, &call->memories[l], thread, scores);
            barrier(team);
            residual(team, &layer->cross_output, team->mixed, &layer->cross_norm, thread);
        }
        input = call->x;
        if (call->pre_norm)
            normalise(&layer->feed_norm, call->x, n, d, call->epsilon, normed), input = normed;
        product(&layer->inner, input, n, 0, 1, team->hidden, thread, threads);
        barrier(team);
        residual(team, &layer->outer, team->hidden, &layer->feed_norm, thread);
    }
}

static void enter(void *data) {
    Team *team = data;
    int size = team_size(), number = thread_number(); /* the team may be smaller than was asked for */
    if (number >= team->wanted)
        return;
    team->threads = size < team->wanted ? size : team->wanted; /* all store the same */
    team->task(team, number);
}

/* Let `wanted` of PyTorch's `available` threads do it: a team of another size would make OpenMP end threads and start
 * others. */
static void start(Team *team, int64_t wanted, int64_t available) {
    team->threads = 1;
    team->wanted = (int)wanted;
    if (parallel && wanted > 1)
        parallel(enter, team, (unsigned)available, 0);
    else
        team->task(team, 0);
}

static void multiply(Team *team, int64_t thread) {
    const Product *given = team->product;
    product(&given->layer, given->x, given->n, given->added, given->relu != 0, given->y, thread, team->threads);
}

void run_product(const Product *given) {
    Team team = {.task = multiply, .product = given};
    start(&team, given->threads, given->threads);
}

static int64_t own_floats(const Call *call) {
    int64_t longest = call->cached + call->t > call->s ? call->cached + call->t : call->s;
    return call->b * call->t * call->d + longest + LANES;
}

int64_t scratch_floats(const Call *call) {
    return call->b * call->t * (4 * call->d + call->hidden) + call->threads * own_floats(call);
}

void run_layers(const Call *call) {
    int64_t n = call->b * call->t;
    Team team = {.task = pass, .call = call, .own_floats = own_floats(call)};
    team.query = call->scratch;
    team.key_value = team.query + n * call->d;
    team.mixed = team.key_value + n * 2 * call->d;
    team.hidden = team.mixed + n * call->d;
    team.own = team.hidden + n * call->hidden;
    start(&team, call->threads, call->available);
}
