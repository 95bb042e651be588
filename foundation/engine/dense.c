/* Products of rows with constant matrices, which are packed once, by kernels/cpu/gemm.c. A result depends on its own row
   alone, so that any division among threads gives the same bits. */

/* out = map(in) of some atoms, or is increased by it; columns that the map does not reach are left alone. */
static void apply(const Map *map, const T *packed, int64_t atoms, const T *in, T *out, int64_t out_width, bool add) {
  for (int n = 0; n < map->num_blocks; n++) {
    const Block *b = map->blocks + n;
    for (int64_t c = 0; c < b->components; c++)
      rows_of_packed(atoms, b->out, b->in, in + b->from + c * b->in, map->width_in, packed + b->packed[0],
                     out + b->to + c * b->out, out_width, add);
  }
}

/* out = transpose of map(gradient) of some atoms, or is increased by it. */
static void apply_transposed(const Map *map, const T *packed, int64_t atoms, const T *gradient, int64_t width, T *out,
                             bool add) {
  for (int n = 0; n < map->num_blocks; n++) {
    const Block *b = map->blocks + n;
    for (int64_t c = 0; c < b->components; c++)
      rows_of_packed(atoms, b->in, b->out, gradient + b->to + c * b->out, width, packed + b->packed[1],
                     out + b->from + c * b->in, map->width_in, add);
  }
}

static void add_bias(const Map *map, const T *numbers, int64_t atoms, T *out, int64_t width) {
  for (int64_t atom = 0; atom < atoms && map->num_bias; atom++, out += width)
    for (int u = 0; u < map->num_bias; u++) out[map->bias_to + u] += numbers[map->bias + u];
}
