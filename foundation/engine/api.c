/* The functions of foundation_model.h. */

static _Thread_local char last_error[512];

static int failed(const char *format, const char *what) {
  snprintf(last_error, sizeof last_error, format, what);
  return -1;
}

const char *foundation_last_error(void) { return last_error; }
double foundation_cutoff(void) { return CUTOFF; }
int foundation_num_layers(void) { return NUM_LAYERS; }
int foundation_num_elements(void) { return NUM_ELEMENTS; }
const int32_t *foundation_elements(void) { return atomic_numbers; }
int foundation_float_bytes(void) { return sizeof(T); }
int foundation_largest_width(void) { return MOST_SUMS > MOST_FEATURES ? MOST_SUMS : MOST_FEATURES; }

typedef struct {
  char magic[8];
  uint64_t layout, float_bytes, num_numbers, num_constants, checksum;
} Header;

/* The sum of words of 8 bytes, the last one filled up with zeros, times powers of an odd factor. */
static uint64_t checksum_of(const char *bytes, size_t size) {
  uint64_t sum = 0;
  for (size_t i = 0; i < size; i += 8) {
    uint64_t word = 0;
    memcpy(&word, bytes + i, size - i < 8 ? size - i : 8);
    sum = (sum + word) * 0x9E3779B97F4A7C15u;
  }
  return sum;
}

static void pack_map(Model *model, const Map *map) {
  for (int n = 0; n < map->num_blocks; n++) {
    const Block *b = map->blocks + n;
    pack_whole(b->out, b->in, model->numbers + b->matrix, b->out, 1, model->packed + b->packed[0]);
    pack_whole(b->in, b->out, model->numbers + b->matrix, 1, b->out, model->packed + b->packed[1]);
  }
}

static void pack_all(Model *model) {
  for (int l = 0; l < NUM_LAYERS; l++) {
    pack_map(model, &layers[l].first);
    pack_map(model, &layers[l].second);
    pack_map(model, &layers[l].connect);
    const Radial *radial = &layers[l].radial;
    for (int n = 0; layers[l].table < 0 && n + 1 < radial->num_sizes; n++)
      pack_whole(radial->sizes[n + 1], radial->sizes[n], model->numbers + radial->matrices[n], radial->sizes[n + 1], 1,
                 model->packed + radial->packed[n]);
  }
}

static void *aligned(size_t size) {
  void *memory = NULL;
  return posix_memalign(&memory, 64, size ? size : 64) ? NULL : memory;
}

static int read_numbers(FILE *from, const char *file, Model *model) {
  Header header;
  if (fread(&header, sizeof header, 1, from) != 1 || memcmp(header.magic, "FNDMODEL", 8))
    return failed("%s is no file of weights of this library", file);
  if (header.layout != LAYOUT || header.float_bytes != sizeof(T) || header.num_numbers != NUM_NUMBERS ||
      header.num_constants != NUM_CONSTANTS)
    return failed("%s belongs to another library: export both together", file);
  const size_t size = NUM_CONSTANTS * sizeof(double) + NUM_NUMBERS * sizeof(T);
  model->memory = aligned(size);
  model->packed = aligned(NUM_PACKED * sizeof(T));
  if (!model->memory || !model->packed) return failed("%s: not enough memory", file);
  if (fread(model->memory, 1, size, from) != size || fgetc(from) != EOF)
    return failed("%s is cut off or too long: copy it again", file);
  if (checksum_of(model->memory, size) != header.checksum) return failed("%s is damaged: copy it again", file);
  model->constants = model->memory;
  model->numbers = (const T *)(model->constants + NUM_CONSTANTS);
  return 0;
}

int foundation_open(const char *file, foundation_model **result) {
  Model *model = calloc(1, sizeof *model);
  FILE *from = fopen(file, "rb");
  *result = NULL;
  if (!from || !model) {
    free(model);
    if (from) fclose(from);
    return failed("%s cannot be opened", file);
  }
  const int status = read_numbers(from, file, model);
  fclose(from);
  if (status) {
    foundation_close((foundation_model *)model);
    return status;
  }
  pack_all(model);
  *result = (foundation_model *)model;
  return 0;
}

void foundation_close(foundation_model *closed) {
  Model *model = (Model *)closed;
  if (!model) return;
  free(model->memory), free(model->packed), free(model->room), free(model);
}

double foundation_force_uncertainty(const foundation_model *opened, double distance, double force) {
#ifdef FORCE_SCALE
  const double *scale = ((const Model *)opened)->constants + FORCE_SCALE;
  const int knots = scale[5];
  const double *scores = scale + 6, *errors = scores + knots;
  const double score = scale[0] + scale[1] * log(fmax(distance, scale[3])) + scale[2] * log(force + scale[4]);
  const double inside = fmin(fmax(score, scores[0]), scores[knots - 1]);
  int upper = 1;
  while (upper + 1 < knots && scores[upper] < inside) upper++;
  const double share = (inside - scores[upper - 1]) / (scores[upper] - scores[upper - 1]);
  return exp(errors[upper - 1] + share * (errors[upper] - errors[upper - 1]) + score - inside);
#else
  return (void)opened, (void)distance, (void)force, 0;
#endif
}

static int check(const System *system) {
  const int64_t local = system->num_local;
  if (local < 0 || system->num_atoms < local || system->num_edges < 0 || system->num_threads < 1)
    return failed("%s", "the numbers of atoms, edges or threads make no sense");
  if (system->row_pointers[0] != 0 || system->row_pointers[local] != system->num_edges)
    return failed("%s", "row_pointers must begin with 0 and end with the number of edges");
  for (int64_t i = 0; i < system->num_atoms; i++)
    if (system->elements[i] < 0 || system->elements[i] >= NUM_ELEMENTS)
      return failed("%s", "an atom has an element that the potential does not know");
  for (int64_t i = 0; i < local; i++)
    if (system->row_pointers[i] > system->row_pointers[i + 1]) return failed("%s", "row_pointers must not fall");
  for (int64_t e = 0; e < system->num_edges; e++)
    if (system->senders[e] < 0 || system->senders[e] >= system->num_atoms) return failed("%s", "a sender is no atom");
  return 0;
}

int foundation_compute(foundation_model *opened, const foundation_system *system, foundation_result *result) {
  Model *model = (Model *)opened;
  Room room;
  if (check(system)) return -1;
  const int64_t size = lay_out(&room, NULL, system->num_local, system->num_atoms, system->num_edges, system->num_threads);
  if (size > model->room_size) {
    free(model->room);
    const int64_t roomy = size + size / 8;
    model->room = aligned(roomy);
    model->room_size = model->room ? roomy : 0;
    if (!model->room) return failed("%s", "not enough memory for so many atoms");
  }
  lay_out(&room, model->room, system->num_local, system->num_atoms, system->num_edges, system->num_threads);
  calculate(model, &room, system, result);
  if (REPELS) repel(&room, system, result);
  return 0;
}
