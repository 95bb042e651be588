/* A trained interatomic potential. Lengths are in Å, energies in eV. No function uses global state but the last error. */
#ifndef FOUNDATION_MODEL_H
#define FOUNDATION_MODEL_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct foundation_model foundation_model;

/* Atoms 0 to num_local - 1 have energies and edges; those after them are ghosts, which only send. The vector of an edge
   runs from its atom (the row) to its sender. Edges beyond the cutoff must be left out, and every two neighbours have an
   edge each, here or in the process that owns the other. */
typedef struct {
  int64_t num_local, num_atoms, num_edges;
  const int32_t *elements;     /* num_atoms: place among foundation_elements() */
  const int64_t *row_pointers; /* num_local + 1: first edge of every atom */
  const int64_t *senders;      /* num_edges */
  const double *vectors;       /* num_edges x 3 */
  int32_t num_threads;
  /* Fills in the rows of ghosts, `width` numbers of the library's float type each; NULL if there are none. */
  void (*exchange)(void *context, void *rows, int width);
  void *context;
} foundation_system;

typedef struct {
  double energy;         /* of the local atoms */
  double *atom_energies; /* num_local */
  double *forces;        /* num_atoms x 3; those of ghosts belong to their owners */
  double *atom_virials;  /* num_local x 9: shares of the virial; NULL: none are wanted */
  double virial[9];      /* dE/d(strain), row-major; divided by the volume it is the stress, positive in tension */
  double *distances;     /* num_local: from the training data, by the last features; zeros if the potential has none;
                            NULL: none are wanted */
} foundation_result;

/* 0, or -1 with foundation_last_error(). */
int foundation_open(const char *file, foundation_model **model);
int foundation_compute(foundation_model *model, const foundation_system *system, foundation_result *result);
void foundation_close(foundation_model *model);

/* Uncertainty of the force on an atom [eV/Å] from its distance and the size of its force; 0 if the potential has none. */
double foundation_force_uncertainty(const foundation_model *model, double distance, double force);

double foundation_cutoff(void);
int foundation_num_layers(void);
int foundation_num_elements(void);
const int32_t *foundation_elements(void); /* atomic numbers, ascending places */
int foundation_float_bytes(void);         /* 4 or 8 */
int foundation_largest_width(void);       /* most numbers in a row of `exchange` */
const char *foundation_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
