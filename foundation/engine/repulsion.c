/* The repulsion of nn/repulsion.py between atoms much closer than a bond. It is added after the network, in float64, and
   half of a pair's energy belongs to each of its atoms, so that every process adds the shares of its own rows. */

/* The energy of a pair [eV] and its slope over distance. */
static double repulsion(int32_t one, int32_t other, double r, double reach, double *slope) {
  const double first = atomic_numbers[one], second = atomic_numbers[other];
  const double scale = (pow(first, 0.23) + pow(second, 0.23)) / (0.8854 * BOHR);
  double screening = 0, screening_slope = 0;
  for (int n = 0; n < NUM_SCREENING; n++) {
    const double term = screening_terms[n][0] * exp(-screening_terms[n][1] * scale * r);
    screening += term;
    screening_slope -= screening_terms[n][1] * scale * term;
  }
  const double bare = COULOMB * first * second / r, width = (REPULSION_OUTER - REPULSION_INNER) * reach;
  const double x = fmin(1, (REPULSION_OUTER * reach - r) / width);
  const double share = x * x * x * (10 - 15 * x + 6 * x * x), share_slope = -30 * x * x * (1 - x) * (1 - x) / width;
  *slope = bare * ((screening_slope - screening / r) * share + screening * share_slope);
  return bare * screening * share;
}

static void repel(const Room *room, const System *system, Result *result) {
  for (int64_t atom = 0; atom < system->num_local; atom++)
    for (int64_t edge = system->row_pointers[atom]; edge < system->row_pointers[atom + 1]; edge++) {
      const int64_t sender = system->senders[edge];
      const int32_t one = system->elements[atom], other = system->elements[sender];
      const double r = room->lengths.distances[edge], reach = covalent_radii[one] + covalent_radii[other];
      if (r >= REPULSION_OUTER * reach) continue;
      double slope;
      const double energy = 0.5 * repulsion(one, other, r, reach, &slope), *v = system->vectors + 3 * edge;
      result->atom_energies[atom] += energy;
      result->energy += energy;
      for (int i = 0; i < 3; i++) {
        const double g = 0.5 * slope * v[i] / r;
        result->forces[3 * atom + i] += g;
        result->forces[3 * sender + i] -= g;
        for (int j = 0; j < 3; j++) {
          result->virial[3 * j + i] += v[j] * g;
          if (result->atom_virials) result->atom_virials[9 * atom + 3 * j + i] += v[j] * g;
        }
      }
    }
}
