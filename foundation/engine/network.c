/* A calculation: features from layer to layer, then gradients from the last to the first. Every atom's row is computed
   from its own edges alone, so that threads and processes share the work by atoms; between the layers a process may ask
   others for the features of its ghosts, and for their gradients. */

enum { BLOCK = 16 };

typedef struct {
  T *harmonics, *harmonics_gradient, *length_gradient;
  Lengths lengths;
  T *mixed[NUM_LAYERS], *gates[NUM_LAYERS]; /* inputs of the convolution and of the gate */
  T *features, *gradients;                  /* of local atoms: the last layer's result, and the gradient of its input */
  T *sums;                                  /* all atoms: the gradient of a layer's sums */
  T *room;                                  /* of every thread */
} Room;

static int64_t room_of_a_thread(void) { return 2 * (int64_t)TILE * MOST_WEIGHTS + (int64_t)BLOCK * (MOST_SUMS + MOST_FEATURES); }

/* Lays out the arrays in one piece of memory; with NULL only its size is found. */
static int64_t lay_out(Room *room, char *memory, int64_t local, int64_t all, int64_t edges, int threads) {
  int64_t used = 0;
#define PLACE(pointer, count) \
  pointer = (void *)(memory + used); \
  used += ((int64_t)(count) * sizeof *pointer + 63) / 64 * 64;
  PLACE(room->lengths.distances, edges)
  PLACE(room->lengths.interval, edges)
  PLACE(room->lengths.place, edges)
  PLACE(room->harmonics, edges * DY)
  PLACE(room->harmonics_gradient, edges * DY)
  PLACE(room->length_gradient, edges)
  for (int l = 0; l < NUM_LAYERS; l++) {
    const int64_t width = layers[l].width, before = l > 1 ? layers[l - 1].width : 0;
    PLACE(room->mixed[l], all * (width > before ? width : before))
    PLACE(room->gates[l], local * layers[l].width_gates)
  }
  PLACE(room->features, local * layers[NUM_LAYERS - 1].width_next)
  PLACE(room->gradients, local * layers[NUM_LAYERS - 1].width)
  PLACE(room->sums, all * MOST_SUMS)
  PLACE(room->room, threads * room_of_a_thread())
#undef PLACE
  return used;
}

/* The gradient of a layer's input: where the next layer's was, which is not needed any more. */
static T *gradient_before(const Room *room, int number) {
  return number + 1 < NUM_LAYERS ? room->mixed[number + 1] : room->gradients;
}

static void weights_of(const Model *model, const Layer *layer, const Room *room, int64_t first, int count, T *weights,
                       T *slopes) {
  if (layer->table >= 0)
    from_table(model->numbers + layer->table, layer->num_weights, &room->lengths, first, count, weights, slopes);
  else
    by_network(&layer->radial, model->packed, model->numbers + WAVE_NUMBERS, &room->lengths, first, count, weights,
               slopes);
}

/* The sums of atoms begin to end, or with `own` the gradient of their features. */
static void rows_of(const Model *model, const Layer *layer, const Room *room, const Rows *rows, const int64_t *pointers,
                    int64_t begin, int64_t end, T *memory, const T *own, T *out) {
  T *weights = memory, *slopes = own ? memory + (int64_t)TILE * MOST_WEIGHTS : NULL;
  const int64_t width = own ? layer->width : layer->width_sum;
  memset(out, 0, (end - begin) * width * sizeof(T));
  int64_t row = begin;
  for (int64_t first = pointers[begin]; first < pointers[end];) {
    const int64_t last = first + TILE < pointers[end] ? first + TILE : pointers[end];
    weights_of(model, layer, room, first, last - first, weights, slopes);
    for (int64_t edge = first; edge < last;) {
      while (pointers[row + 1] <= edge) row++;
      const int64_t stop = pointers[row + 1] < last ? pointers[row + 1] : last;
      const T *w = weights + (edge - first) * layer->num_weights;
      T *to = out + (row - begin) * width;
      if (own)
        layer->differentiate(rows, edge, stop, w, slopes + (edge - first) * layer->num_weights, own + row * width, to);
      else layer->sum(rows, edge, stop, w, to);
      edge = stop;
    }
    first = last;
  }
}

/* Features to send and the self-connection of the layer that comes next. */
static void enter(const Model *model, int number, const Room *room, int64_t begin, int64_t count, const T *features) {
  const Layer *layer = layers + number;
  T *mixed = room->mixed[number] + begin * layer->width, *gates = room->gates[number] + begin * layer->width_gates;
  apply(&layer->first, model->packed, count, features, mixed, layer->width, false);
  add_bias(&layer->first, model->numbers, count, mixed, layer->width);
  memset(gates, 0, count * layer->width_gates * sizeof(T));
  apply(&layer->connect, model->packed, count, features, gates, layer->width_gates, true);
}

static void layer_forward(const Model *model, int number, const Room *room, const Rows *rows, const System *system,
                          int64_t begin, int64_t end, T *memory) {
  const Layer *layer = layers + number;
  const int64_t count = end - begin;
  const bool last = number + 1 == NUM_LAYERS;
  T *sums = memory + 2 * (int64_t)TILE * MOST_WEIGHTS;
  T *features = last ? room->features + begin * layer->width_next : sums + (int64_t)BLOCK * MOST_SUMS;
  T *gates = room->gates[number] + begin * layer->width_gates;
  rows_of(model, layer, room, rows, system->row_pointers, begin, end, memory, NULL, sums);
  apply(&layer->second, model->packed, count, sums, gates, layer->width_gates, true);
  add_bias(&layer->second, model->numbers, count, gates, layer->width_gates);
  gate_forward(&layer->gate, count, gates, layer->width_gates, features, layer->width_next);
  if (!last) enter(model, number + 1, room, begin, count, features);
}

/* From the gradient of a layer's result to that of its sums, and of its input through the self-connection. */
static void layer_open(const Model *model, int number, const Room *room, int64_t begin, int64_t end) {
  const Layer *layer = layers + number;
  const int64_t count = end - begin;
  T *gates = room->gates[number] + begin * layer->width_gates;
  const T *after = number + 1 < NUM_LAYERS ? gradient_before(room, number + 1) : room->features;
  T *before = gradient_before(room, number) + begin * layer->width;
  gate_backward(&layer->gate, count, gates, layer->width_gates, after + begin * layer->width_next, layer->width_next);
  apply_transposed(&layer->second, model->packed, count, gates, layer->width_gates,
                   room->sums + begin * layer->width_sum, false);
  if (number == 0) return;
  memset(before, 0, count * layer->width * sizeof(T));
  apply_transposed(&layer->connect, model->packed, count, gates, layer->width_gates, before, true);
}

static void layer_backward(const Model *model, int number, const Room *room, const Rows *rows, const System *system,
                           int64_t begin, int64_t end, T *memory) {
  const Layer *layer = layers + number;
  T *own = memory + 2 * (int64_t)TILE * MOST_WEIGHTS;
  rows_of(model, layer, room, rows, system->row_pointers, begin, end, memory, room->mixed[number], own);
  if (number == 0) return;
  T *before = gradient_before(room, number) + begin * layer->width;
  apply_transposed(&layer->first, model->packed, end - begin, own, layer->width, before, true);
}

static void measure_edges(const Room *room, const System *system) {
#pragma omp parallel for schedule(static) num_threads(system->num_threads) if (system->num_threads > 1)
  for (int64_t edge = 0; edge < system->num_edges; edge++) {
    const double *v = system->vectors + 3 * edge;
    const double r = sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2]), unit[3] = {v[0] / r, v[1] / r, v[2] / r};
    room->lengths.distances[edge] = r;
    locate(r, room->lengths.interval + edge, room->lengths.place + edge);
    harmonics(UNIT_HARMONICS ? unit : v, room->harmonics + edge * DY);
  }
  memset(room->harmonics_gradient, 0, system->num_edges * DY * sizeof(T));
  memset(room->length_gradient, 0, system->num_edges * sizeof(T));
}

/* dE/d(vector) of every edge, added to forces and virial. */
static void collect(const Room *room, const System *system, Result *result) {
  memset(result->forces, 0, 3 * system->num_atoms * sizeof(double));
  memset(result->virial, 0, 9 * sizeof(double));
  if (result->atom_virials) memset(result->atom_virials, 0, 9 * system->num_local * sizeof(double));
  for (int64_t atom = 0; atom < system->num_local; atom++)
    for (int64_t edge = system->row_pointers[atom]; edge < system->row_pointers[atom + 1]; edge++) {
      const double *v = system->vectors + 3 * edge, r = room->lengths.distances[edge];
      const double u[3] = {v[0] / r, v[1] / r, v[2] / r};
      double g[3], along = 0;
      harmonics_gradient(UNIT_HARMONICS ? u : v, room->harmonics_gradient + edge * DY, g);
      for (int i = 0; i < 3; i++) along += g[i] * u[i];
      for (int i = 0; i < 3; i++) {
        if (UNIT_HARMONICS) g[i] = (g[i] - along * u[i]) / r;
        g[i] += room->length_gradient[edge] * u[i];
        result->forces[3 * atom + i] += g[i];
        result->forces[3 * system->senders[edge] + i] -= g[i];
        for (int j = 0; j < 3; j++) {
          result->virial[3 * j + i] += v[j] * g[i];
          if (result->atom_virials) result->atom_virials[9 * atom + 3 * j + i] += v[j] * g[i];
        }
      }
    }
}

/* |f W|, the distance of an atom from the training data. */
static double distance_of(const Model *model, const T *features, int width) {
#ifdef WHITENING
  const T *matrix = model->numbers + WHITENING;
  T placed[MOST_FEATURES] = {0};
  double sum = 0;
  for (int u = 0; u < width; u++)
    for (int v = 0; v < width; v++) placed[v] += features[u] * matrix[u * width + v];
  for (int v = 0; v < width; v++) sum += (double)placed[v] * placed[v];
  return sqrt(sum);
#else
  return (void)model, (void)features, (void)width, 0;
#endif
}

static void read_out(const Model *model, const Room *room, const System *system, Result *result) {
  const int width = layers[NUM_LAYERS - 1].width_next;
  const T *weights = model->numbers + READOUT;
  result->energy = 0;
  for (int64_t atom = 0; atom < system->num_local; atom++) {
    T *features = room->features + atom * width;
    double sum = model->constants[0];
    for (int u = 0; u < width; u++) sum += (double)features[u] * weights[u];
    const int32_t element = system->elements[atom];
    const double scale = model->constants[1 + element];
    result->atom_energies[atom] = scale * sum + model->constants[1 + NUM_ELEMENTS + element];
    result->energy += result->atom_energies[atom];
    if (result->distances) result->distances[atom] = distance_of(model, features, width);
    for (int u = 0; u < width; u++) features[u] = (T)scale * weights[u]; /* from here on their gradient */
  }
}

#define BLOCKS_OF(atoms, work) \
  _Pragma("omp parallel for schedule(dynamic, 1) num_threads(system->num_threads) if (system->num_threads > 1)") \
  for (int64_t begin = 0; begin < (atoms); begin += BLOCK) { \
    const int64_t end = begin + BLOCK < (atoms) ? begin + BLOCK : (atoms); \
    T *memory = room->room + omp_get_thread_num() * room_of_a_thread(); \
    (void)memory; \
    work; \
  }

static void exchange(const System *system, T *values, int width) {
  if (system->exchange) system->exchange(system->context, values, width);
}

static void calculate(const Model *model, const Room *room, const System *system, Result *result) {
  Rows rows = {system->senders, room->harmonics, room->harmonics_gradient, room->length_gradient, NULL, NULL};
  const int64_t local = system->num_local;
  measure_edges(room, system);
  BLOCKS_OF(local, {
    T *features = memory + 2 * (int64_t)TILE * MOST_WEIGHTS;
    for (int64_t atom = begin; atom < end; atom++)
      memcpy(features + (atom - begin) * layers[0].width,
             model->numbers + EMBEDDING + system->elements[atom] * layers[0].width, layers[0].width * sizeof(T));
    enter(model, 0, room, begin, end - begin, features);
  })
  for (int number = 0; number < NUM_LAYERS; number++) {
    rows.mixed = room->mixed[number];
    exchange(system, room->mixed[number], layers[number].width);
    BLOCKS_OF(local, layer_forward(model, number, room, &rows, system, begin, end, memory))
  }
  read_out(model, room, system, result);
  for (int number = NUM_LAYERS - 1; number >= 0; number--) {
    BLOCKS_OF(local, layer_open(model, number, room, begin, end))
    rows.gradient = room->sums;
    exchange(system, room->sums, layers[number].width_sum);
    BLOCKS_OF(local, layer_backward(model, number, room, &rows, system, begin, end, memory))
  }
  collect(room, system, result);
}
