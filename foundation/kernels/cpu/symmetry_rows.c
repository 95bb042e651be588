/* The loops over atoms, edges and terms of two edges. */

static void open_row(Row *row, int64_t most, int num_kinds) {
  const int64_t padded = most + LANES;
  T *p = calloc(14 * padded, sizeof(T));
  T **fields[14] = {&row->x,  &row->y,  &row->z,  &row->u,  &row->inverse, &row->f,  &row->f1,
                    &row->f2, &row->tx, &row->ty, &row->tz, &row->gx,      &row->gy, &row->gz};
  for (int i = 0; i < 14; i++) *fields[i] = p + i * padded;
  row->edge = calloc(padded + num_kinds + 1, sizeof(int64_t));
  row->first = row->edge + padded;
}

static void close_row(Row *row) {
  free(row->x);
  free(row->edge);
}

/* Read the edges of an atom, sorted by kind. */
static void read_row(Row *row, const Graph *graph, const Fields *fields, int64_t atom, int level) {
  const int64_t begin = graph->row_pointers[atom], end = graph->row_pointers[atom + 1];
  row->size = 0;
  for (int kind = 0; kind < graph->num_kinds; kind++) {
    row->first[kind] = row->size;
    for (int64_t edge = begin; edge < end; edge++) {
      if (graph->kinds[edge] != kind) continue;
      const T *r = fields->vectors + 3 * edge;
      const int64_t n = row->size++;
      row->edge[n] = edge;
      row->x[n] = r[0], row->y[n] = r[1], row->z[n] = r[2];
      row->u[n] = r[0] * r[0] + r[1] * r[1] + r[2] * r[2];
      row->inverse[n] = 1 / SQRT(row->u[n]);
      if (level == 2) row->tx[n] = fields->t[3 * edge], row->ty[n] = fields->t[3 * edge + 1], row->tz[n] = fields->t[3 * edge + 2];
    }
  }
  row->first[graph->num_kinds] = row->size;
  /* neutral lanes behind the last edge */
  for (int64_t n = row->size; n < row->size + LANES; n++) row->u[n] = 1, row->inverse[n] = 1;
  for (int64_t n = 0; n < row->size; n += LANES) {
    V f, f1, f2;
    cutoff(at(row->u + n), &f, &f1, &f2);
    STORE(row->f + n, f, LANES), STORE(row->f1 + n, f1, LANES), STORE(row->f2 + n, f2, LANES);
  }
  memset(row->gx, 0, (row->size + LANES) * sizeof(T));
  memset(row->gy, 0, (row->size + LANES) * sizeof(T));
  memset(row->gz, 0, (row->size + LANES) * sizeof(T));
}

static inline FORCED void neutral(Terms *b, int from) {
  for (int n = from; n < LANES; n++) {
    b->u[n] = b->v[n] = b->w[n] = 1, b->cosine[n] = 0, b->h[n] = 0.5;
    b->fa[n] = b->fb[n] = b->fa1[n] = b->fb1[n] = b->fa2[n] = b->fb2[n] = 0;
    b->ut[n] = b->vt[n] = b->wt[n] = 0;
  }
}

/* Put edges j and k into the batch. */
static inline FORCED void add_term(Terms *b, const Row *row, int64_t j, int64_t k, T w, int level) {
  const int n = b->count++;
  b->j[n] = j, b->k[n] = k;
  b->u[n] = row->u[j], b->v[n] = row->u[k], b->w[n] = w;
  const T inverse = row->inverse[j] * row->inverse[k];
  b->cosine[n] = (row->x[j] * row->x[k] + row->y[j] * row->y[k] + row->z[j] * row->z[k]) * inverse;
  b->h[n] = inverse / 2;
  b->fa[n] = row->f[j], b->fb[n] = row->f[k];
  if (level == 0) return;
  b->fa1[n] = row->f1[j], b->fb1[n] = row->f1[k];
  if (level == 1) return;
  b->fa2[n] = row->f2[j], b->fb2[n] = row->f2[k];
  b->ut[n] = 2 * (row->x[j] * row->tx[j] + row->y[j] * row->ty[j] + row->z[j] * row->tz[j]);
  b->vt[n] = 2 * (row->x[k] * row->tx[k] + row->y[k] * row->ty[k] + row->z[k] * row->tz[k]);
  b->wt[n] = 2 * ((row->x[k] - row->x[j]) * (row->tx[k] - row->tx[j]) + (row->y[k] - row->y[j]) * (row->ty[k] - row->ty[j]) +
                  (row->z[k] - row->z[j]) * (row->tz[k] - row->tz[j]));
}

typedef void Work(Terms *, Row *, const T *, V *, int);

/* All terms of two edges of one pair of kinds; near: the far ends must be neighbours too. */
static inline FORCED void pair_of_kinds(Row *row, int a, int b, const T *g, T *values, int level, int near, int count, Work *work) {
  Terms terms = {0};
  V sums[MOST];
  for (int i = 0; i < count; i++) sums[i] = ZERO;
  for (int64_t j = row->first[a]; j < row->first[a + 1]; j++)
    for (int64_t k = a == b ? j + 1 : row->first[b]; k < row->first[b + 1]; k++) {
      const T dx = row->x[k] - row->x[j], dy = row->y[k] - row->y[j], dz = row->z[k] - row->z[j];
      const T w = dx * dx + dy * dy + dz * dz;
      if (near && !(w < (T)(RADIUS * RADIUS))) continue;
      add_term(&terms, row, j, k, w, level);
      if (terms.count == LANES) work(&terms, row, g, sums, level), terms.count = 0;
    }
  if (terms.count) neutral(&terms, terms.count), work(&terms, row, g, sums, level);
  if (level != 1)
    for (int i = 0; i < count; i++) values[i] += total(sums[i]);
}

static inline FORCED void one_atom(Row *row, const Graph *graph, const Fields *fields, int64_t atom, int level) {
  const int kinds = graph->num_kinds, pairs = kinds * (kinds + 1) / 2;
  const int64_t width = (int64_t)kinds * RADIAL + (int64_t)pairs * (NEAR + WIDE);
  const T *g = level ? fields->g + atom * width : NULL;
  T *values = level == 1 ? NULL : fields->values + atom * width;
  read_row(row, graph, fields, atom, level);
  if (values) memset(values, 0, width * sizeof(T));
  for (int kind = 0; kind < kinds; kind++)
    edges_of_kind(row, kind, g ? g + kind * RADIAL : NULL, values ? values + kind * RADIAL : NULL, level);
  int64_t near = (int64_t)kinds * RADIAL, wide = near + (int64_t)pairs * NEAR;
  for (int a = 0; a < kinds; a++)
    for (int b = a; b < kinds; b++, near += NEAR, wide += WIDE) {
      if (NEAR) pair_of_kinds(row, a, b, g ? g + near : NULL, values ? values + near : NULL, level, 1, NEAR, near_terms);
      if (WIDE) pair_of_kinds(row, a, b, g ? g + wide : NULL, values ? values + wide : NULL, level, 0, WIDE, wide_terms);
    }
  if (level == 0) return;
  for (int64_t n = 0; n < row->size; n++) {
    T *gv = fields->gv + 3 * row->edge[n];
    gv[0] = row->gx[n], gv[1] = row->gy[n], gv[2] = row->gz[n];
  }
}

static inline FORCED void all_atoms(const Graph *graph, const Fields *fields, int level) {
  int64_t most = 0;
  for (int64_t atom = 0; atom < graph->num_atoms; atom++) {
    const int64_t size = graph->row_pointers[atom + 1] - graph->row_pointers[atom];
    most = size > most ? size : most;
  }
#pragma omp parallel num_threads(graph->num_threads) if (graph->num_threads > 1)
  {
    Row row;
    open_row(&row, most, graph->num_kinds);
#pragma omp for schedule(dynamic, 4)
    for (int64_t atom = 0; atom < graph->num_atoms; atom++) one_atom(&row, graph, fields, atom, level);
    close_row(&row);
  }
}

void values(const Graph *graph, const Fields *fields) { all_atoms(graph, fields, 0); }
void gradient(const Graph *graph, const Fields *fields) { all_atoms(graph, fields, 1); }
void tangent(const Graph *graph, const Fields *fields) { all_atoms(graph, fields, 2); }
