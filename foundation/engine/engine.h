/* Shapes of a network and what a calculation needs. T, V and the vectors are prologue.c's. */
#include <math.h>
#include <omp.h>
#include <stdbool.h>
#include <stdio.h>

typedef foundation_system System;
typedef foundation_result Result;

/* One matrix of a linear map of irreps: channels of one irrep, the same for all of its components. */
typedef struct {
  int32_t in, out, components;
  int32_t from, to; /* first column of the irrep in the input and in the output */
  int64_t matrix;   /* row-major, among the numbers of the file */
  int64_t packed[2]; /* packed for products from the left, and its transpose, among the packed numbers */
} Block;

typedef struct {
  int32_t num_blocks, width_in;
  const Block *blocks;
  int64_t bias; /* of the first `num_bias` columns from `bias_to` on */
  int32_t num_bias, bias_to;
} Map;

/* Odd scalars, even scalars, then one even scalar for each channel of the irreps that are multiplied. */
typedef struct {
  int32_t odd, even, num_gated;
  const int32_t *components, *channels;
  T silu, tanh;
} Gate;

typedef struct {
  int32_t num_sizes;
  const int32_t *sizes;
  const int64_t *matrices, *packed;
} Radial;

/* What the convolutions read and write. The gradient at an edge of a row is that of the message which runs the other
   way, from the row's atom to the edge's sender: so a row needs nothing of other rows but their inputs. */
typedef struct {
  const int64_t *senders;
  const T *harmonics;                      /* edges x DY */
  T *harmonics_gradient, *length_gradient; /* edges x DY, edges */
  const T *mixed, *gradient;               /* of all atoms: the features to send, and dE/d(sum) */
} Rows;

typedef struct {
  int32_t width, width_sum, width_gates, width_next, num_weights;
  Map first, second, connect;
  Gate gate;
  Radial radial;
  int64_t table; /* -1: none */
  /* Edges first to last are of one row; weights and slopes are theirs. */
  void (*sum)(const Rows *rows, int64_t first, int64_t last, const T *weights, T *out);
  void (*differentiate)(const Rows *rows, int64_t first, int64_t last, const T *weights, const T *slopes, const T *x,
                        T *out);
} Layer;

typedef struct {
  void *memory;            /* of the numbers that were read */
  const double *constants; /* of the readout, then the scale and the reference energy of every element */
  const T *numbers;
  T *packed;
  char *room;
  int64_t room_size;
} Model;
