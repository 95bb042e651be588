/* The loops over rows and edges. */

typedef struct {
  int64_t num_atoms, num_edges;
  const int64_t *row_pointers, *senders, *pairs, *reverse, *sender_order, *sender_pointers;
  int32_t num_threads;
} Edges;

typedef struct {
  const T *x, *y, *w, *g, *vx, *vy, *vw;
  T *gx, *gy, *gw, *gg;
  T *own;     /* atoms x DX: the part of gx that a row sums by itself */
  T *by_edge; /* edges x DX: the part of gx that goes to an edge's sender; NULL to add it to gx at once */
  /* instead of w: the input of the last radial layer, its packed matrix and that of its transpose, and the gradient */
  const T *hidden, *packed, *packed_back;
  T *ghidden;
  int64_t num_hidden;
  void (*product)(int64_t rows, int64_t columns, int64_t inner, const T *a, const T *packed, T *c);
} Arrays;

/* Bytes of weights beyond which their gradients are written past the caches. */
enum { PAST = 4 << 20 };

static const T zeros[DO > DX ? DO : DX];

static int is_first(const Edges *edges, int64_t edge) { return edges->reverse[edge] < 0 || edges->reverse[edge] > edge; }

/* Put an edge into the batch; harmonics of odd degree change sign with its direction. */
static inline void add_edge(const Edges *edges, const Arrays *a, int64_t edge, Batch *b) {
  const int k = b->count++;
  const int64_t pair = edges->pairs[edge], sender = edges->senders[edge];
  const int reversed = !is_first(edges, edge);
  const int64_t later = edge + EDGES < edges->num_edges ? edge + EDGES : edge;
  T *y = (T *)b->y + k, *vy = (T *)b->vy + k;
  b->pair[k] = pair;
  b->x[k] = a->x + sender * DX;
  b->w[k] = a->w + pair * NW;
  b->ahead[k] = (edges->pairs[later] - pair) * NW;
  for (int i = 0; i < DY; i++) y[i * EDGES] = reversed && odd[i] ? -a->y[pair * DY + i] : a->y[pair * DY + i];
  if (!a->vx) return;
  b->r[k] = a->vx + sender * DX;
  b->v[k] = a->vw + pair * NW;
  for (int i = 0; i < DY; i++) vy[i * EDGES] = reversed && odd[i] ? -a->vy[pair * DY + i] : a->vy[pair * DY + i];
}

/* Where a thread makes the weights of up to CHUNK edges of a row from hidden values. */
enum { CHUNK = 4 * EDGES };

static void get_tiles(const Arrays *a, Batch *b) {
  if (!a->hidden) return;
  b->tile = aligned_alloc(64, CHUNK * NW * sizeof(T));
  b->gradient_tile = aligned_alloc(64, CHUNK * NW * sizeof(T));
  b->rows = aligned_alloc(64, CHUNK * a->num_hidden * sizeof(T));
}

static void free_tiles(Batch *b) { free(b->tile), free(b->gradient_tile), free(b->rows); }

/* Before a batch that begins with a row's edge number `place`: the weights of the chunk that begins there. */
static void make_weights(const Edges *edges, const Arrays *a, int64_t row, int64_t place, Batch *b) {
  if (!a->hidden || place % CHUNK) return;
  const int64_t first = edges->row_pointers[row] + place, rest = edges->row_pointers[row + 1] - first;
  const int64_t count = rest < CHUNK ? rest : CHUNK, size = a->num_hidden;
  for (int64_t k = 0; k < count; k++)
    memcpy(b->rows + k * size, a->hidden + edges->pairs[first + k] * size, size * sizeof(T));
  a->product(count, NW, size, b->rows, a->packed, b->tile);
}

/* The same for pair number `place` of the `count` pairs of a row, of which `pair` is the first. */
static void make_weights_of_pairs(const Arrays *a, int64_t pair, int64_t place, int64_t count, Batch *b) {
  if (!a->hidden || place % CHUNK) return;
  const int64_t some = count - place < CHUNK ? count - place : CHUNK;
  a->product(some, NW, a->num_hidden, a->hidden + (pair + place) * a->num_hidden, a->packed, b->tile);
}

/* After a batch that ends before pair number `place`: the gradients for the hidden values of a chunk that ends there. */
static void hidden_gradient(const Arrays *a, int64_t pair, int64_t place, int64_t count, Batch *b) {
  if (!a->hidden || (place % CHUNK && place < count)) return;
  const int64_t begin = (place - 1) / CHUNK * CHUNK;
  T *to = a->ghidden + (pair + begin) * a->num_hidden;
  a->product(place - begin, a->num_hidden, NW, b->gradient_tile, a->packed_back, to);
}

/* The batch's weights lie in the tile, from a row's edge or pair number `place` on. */
static void use_tile(const Arrays *a, int64_t place, Batch *b) {
  for (int k = 0; a->hidden && k < b->count; k++) {
    b->w[k] = b->tile + (place % CHUNK + k) * NW, b->ahead[k] = 0;
    b->gw[k] = b->gradient_tile + (place % CHUNK + k) * NW;
  }
}

static void couple_batch(const Arrays *a, Batch *b) {
  couple((T *)b->y, b->m);
  if (a->vx) couple((T *)b->vy, b->n);
}

/* One row of out, or of the gradient of g in the double backward. */
static void sum_row(const Edges *edges, const Arrays *a, int64_t row, Batch *b, T *out) {
  memset(out, 0, DO * sizeof(T));
  const int64_t first = edges->row_pointers[row], last = edges->row_pointers[row + 1];
  for (int64_t edge = first; edge < last;) {
    const int64_t place = edge - first;
    make_weights(edges, a, row, place, b);
    for (b->count = 0; edge < last && b->count < EDGES; edge++) add_edge(edges, a, edge, b);
    use_tile(a, place, b);
    couple_batch(a, b);
    if (a->vx) double_sum(b, out);
    else sum(b, out);
  }
}

void forward(const Edges *edges, const Arrays *a, T *out) {
#pragma omp parallel num_threads(edges->num_threads) if (edges->num_threads > 1)
  {
    Batch b = {0};
    get_tiles(a, &b);
#pragma omp for schedule(dynamic, 4)
    for (int64_t row = 0; row < edges->num_atoms; row++) sum_row(edges, a, row, &b, out + row * DO);
    free_tiles(&b);
  }
}

/* Put a pair into the batch, by its first edge. */
static inline void add_pair(const Edges *edges, const Arrays *a, int64_t edge, Batch *b) {
  const int64_t pair = edges->pairs[edge], sender = edges->senders[edge];
  const int k = b->count;
  add_edge(edges, a, edge, b);
  b->ahead[k] = EDGES * NW;
  b->far_g[k] = edges->reverse[edge] < 0 ? zeros : a->g + sender * DO;
  b->gw[k] = a->gw + pair * NW;
  b->gx[k] = a->by_edge ? a->by_edge + edge * DX : a->gx + sender * DX;
  if (a->by_edge) memset(b->gx[k], 0, DX * sizeof(T));
}

/* The gradients of all pairs whose first edge is in a row; their numbers follow one another. */
static void pairs_of_row(const Edges *edges, const Arrays *a, int64_t row, Batch *b) {
  const int64_t last = edges->row_pointers[row + 1];
  int64_t edge = edges->row_pointers[row], place = 0, count = 0, pair = -1;
  for (int64_t e = edge; e < last; e++)
    if (is_first(edges, e) && !count++) pair = edges->pairs[e];
  b->past = !a->hidden && edges->num_edges / 2 * NW * sizeof(T) > PAST;
  b->own_x = a->x + row * DX, b->own_r = a->vx + row * DX, b->g = a->g + row * DO, b->own_gx = a->own + row * DX;
  memset(b->own_gx, 0, DX * sizeof(T));
  while (place < count) {
    make_weights_of_pairs(a, pair, place, count, b);
    for (b->count = 0; edge < last && b->count < EDGES; edge++)
      if (is_first(edges, edge)) add_pair(edges, a, edge, b);
    use_tile(a, place, b);
    couple_batch(a, b);
    memset(b->gy, 0, sizeof b->gy);
    if (a->vx) double_gradient(b);
    else gradient(b);
    for (int k = 0; k < b->count; k++)
      for (int i = 0; i < DY; i++) a->gy[b->pair[k] * DY + i] = total(b->gy[k * DY + i]);
    place += b->count;
    hidden_gradient(a, pair, place, count, b);
  }
  finish_streams();
}

/* One past the last row of the shortest run of rows that no edge leaves. */
static int64_t closed_rows(const Edges *edges, int64_t first) {
  int64_t row = first, reach = first;
  for (; row <= reach && row < edges->num_atoms; row++)
    for (int64_t e = edges->row_pointers[row]; e < edges->row_pointers[row + 1]; e++)
      if (edges->senders[e] > reach) reach = edges->senders[e];
  return row;
}

static void gradients_of_rows(const Edges *edges, const Arrays *a, int64_t begin, int64_t end, int num_threads) {
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    Batch b = {0};
    get_tiles(a, &b);
    /* one after the other, while the row's weights are in the cache */
#pragma omp for schedule(dynamic, 4)
    for (int64_t row = begin; row < end; row++) {
      if (a->gg) sum_row(edges, a, row, &b, a->gg + row * DO);
      pairs_of_row(edges, a, row, &b);
    }
#pragma omp for schedule(dynamic, 4)
    for (int64_t atom = begin; atom < end; atom++) {
      T *restrict total = a->gx + atom * DX;
      if (a->by_edge)
        for (int64_t i = edges->sender_pointers[atom]; i < edges->sender_pointers[atom + 1]; i++) {
          const int64_t edge = edges->sender_order[i];
          if (is_first(edges, edge))
            for (int j = 0; j < DX; j++) total[j] += a->by_edge[edge * DX + j];
        }
      for (int j = 0; j < DX; j++) total[j] += a->own[atom * DX + j];
    }
    free_tiles(&b);
  }
}

/* Rows that no edge leaves: a structure, as a rule. */
typedef struct {
  int64_t begin, end, num_edges;
} Run;

static int larger_first(const void *left, const void *right) {
  const Run *a = left, *b = right;
  if (a->num_edges != b->num_edges) return a->num_edges < b->num_edges ? 1 : -1;
  return a->begin < b->begin ? -1 : 1;
}

/* Fills in all runs, the largest first, and returns their number. */
static int64_t find_runs(const Edges *edges, Run *runs) {
  int64_t count = 0;
  for (int64_t begin = 0, end; begin < edges->num_atoms; begin = end) {
    end = closed_rows(edges, begin);
    runs[count++] = (Run){begin, end, edges->row_pointers[end] - edges->row_pointers[begin]};
  }
  qsort(runs, count, sizeof(Run), larger_first);
  return count;
}

/* Whether the threads are busy to the end, within a tenth, if each takes whole runs: that spares the detour by_edge,
   which adds a fifth to a half to the work. */
static int balances(const Edges *edges, const Run *runs, int64_t count) {
  int64_t load[edges->num_threads], most = 0;
  memset(load, 0, sizeof load);
  for (int64_t r = 0; r < count; r++) {
    int least = 0;
    for (int t = 1; t < edges->num_threads; t++)
      if (load[t] < load[least]) least = t;
    load[least] += runs[r].num_edges;
    if (load[least] > most) most = load[least];
  }
  return 10 * most * edges->num_threads <= 11 * edges->num_edges;
}

/* Returns 0 and does nothing if it needs a->by_edge and has not got it. */
int backward(const Edges *edges, const Arrays *a) {
  Run *runs = malloc((edges->num_atoms + 1) * sizeof(Run));
  const int64_t count = find_runs(edges, runs);
  const int by_runs = edges->num_threads == 1 || balances(edges, runs, count), done = by_runs || a->by_edge;
  if (done) memset(a->gx, 0, edges->num_atoms * DX * sizeof(T));
  if (!by_runs && done) gradients_of_rows(edges, a, 0, edges->num_atoms, edges->num_threads);
  if (by_runs) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(edges->num_threads) if (edges->num_threads > 1)
    for (int64_t r = 0; r < count; r++) gradients_of_rows(edges, a, runs[r].begin, runs[r].end, 1);
  }
  free(runs);
  return done;
}
