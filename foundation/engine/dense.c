/* Products of rows with constant matrices, which are packed once: panels of up to PANEL vectors of columns, every panel
   row by row. A result depends on its own row alone, so that any division among threads gives the same bits. */

enum { PANEL = 4, ROWS_AT_ONCE = 6 };

static int64_t packed_size(int64_t in, int64_t out) { return in * ((out + LANES - 1) / LANES) * LANES; }

static void pack(const T *matrix, int64_t in, int64_t out, bool transposed, T *to) {
  const int64_t vectors = (out + LANES - 1) / LANES;
  for (int64_t first = 0; first < vectors; first += PANEL) {
    const int64_t width = (vectors - first < PANEL ? vectors - first : PANEL) * LANES;
    for (int64_t i = 0; i < in; i++)
      for (int64_t j = 0; j < width; j++) {
        const int64_t column = first * LANES + j;
        *to++ = column >= out ? 0 : transposed ? matrix[column * in + i] : matrix[i * out + column];
      }
  }
}

static inline FORCED void panel(const T *const *a, T *const *c, int64_t depth, const T *b, bool add, int tail,
                                const int rows, const int vectors) {
  V sums[ROWS_AT_ONCE][PANEL];
  EACH(r, 0, rows) EACH(v, 0, vectors) sums[r][v] = ZERO;
  for (int64_t k = 0; k < depth; k++, b += vectors * LANES) {
    V columns[PANEL];
    EACH(v, 0, vectors) columns[v] = LOAD(b + v * LANES, LANES);
    EACH(r, 0, rows) EACH(v, 0, vectors) sums[r][v] += a[r][k] * columns[v];
  }
  EACH(r, 0, rows)
    EACH(v, 0, vectors) {
      const int lanes = v == vectors - 1 ? tail : LANES;
      T *to = c[r] + v * LANES;
      STORE(to, add ? LOAD(to, lanes) + sums[r][v] : sums[r][v], lanes);
    }
}

#define PANEL_OF(rows) \
  switch (vectors) { \
    case 1: panel(a, c, depth, b, add, tail, rows, 1); break; \
    case 2: panel(a, c, depth, b, add, tail, rows, 2); break; \
    case 3: panel(a, c, depth, b, add, tail, rows, 3); break; \
    default: panel(a, c, depth, b, add, tail, rows, 4); \
  }

static void few_rows(int rows, const T *const *a, T *const *c, int64_t depth, const T *b, bool add, int vectors,
                     int tail) {
  switch (rows) {
    case 1: PANEL_OF(1) break;
    case 2: PANEL_OF(2) break;
    case 3: PANEL_OF(3) break;
    case 4: PANEL_OF(4) break;
    case 5: PANEL_OF(5) break;
    default: PANEL_OF(6)
  }
}

/* out[r] = in[r] · matrix, or is increased by it. Rows come in groups of `components`: in + (r / components) *
   in_stride + (r % components) * depth, and out alike. */
static void multiply(int64_t rows, int components, int64_t depth, int64_t width, const T *packed, const T *in,
                     int64_t in_stride, T *out, int64_t out_stride, bool add) {
  const int64_t vectors = (width + LANES - 1) / LANES;
  const int rest = width - (vectors - 1) * LANES;
  for (int64_t first = 0; first < vectors; first += PANEL) {
    const int count = vectors - first < PANEL ? vectors - first : PANEL;
    const int tail = first + count == vectors ? rest : LANES;
    for (int64_t row = 0; row < rows; row += ROWS_AT_ONCE) {
      const T *a[ROWS_AT_ONCE];
      T *c[ROWS_AT_ONCE];
      const int some = rows - row < ROWS_AT_ONCE ? rows - row : ROWS_AT_ONCE;
      for (int r = 0; r < some; r++) {
        const int64_t group = (row + r) / components, component = (row + r) % components;
        a[r] = in + group * in_stride + component * depth;
        c[r] = out + group * out_stride + component * width + first * LANES;
      }
      few_rows(some, a, c, depth, packed, add, count, tail);
    }
    packed += depth * count * LANES;
  }
}

/* out = map(in) of some atoms, or is increased by it; columns that the map does not reach are left alone. */
static void apply(const Map *map, const T *packed, int64_t atoms, const T *in, T *out, int64_t out_width, bool add) {
  for (int n = 0; n < map->num_blocks; n++) {
    const Block *b = map->blocks + n;
    multiply(atoms * b->components, b->components, b->in, b->out, packed + b->packed[0], in + b->from, map->width_in,
             out + b->to, out_width, add);
  }
}

/* out = transpose of map(gradient) of some atoms, or is increased by it. */
static void apply_transposed(const Map *map, const T *packed, int64_t atoms, const T *gradient, int64_t width, T *out,
                             bool add) {
  for (int n = 0; n < map->num_blocks; n++) {
    const Block *b = map->blocks + n;
    multiply(atoms * b->components, b->components, b->out, b->in, packed + b->packed[1], gradient + b->to, width,
             out + b->from, map->width_in, add);
  }
}

static void add_bias(const Map *map, const T *numbers, int64_t atoms, T *out, int64_t width) {
  for (int64_t atom = 0; atom < atoms && map->num_bias; atom++, out += width)
    for (int u = 0; u < map->num_bias; u++) out[map->bias_to + u] += numbers[map->bias + u];
}
