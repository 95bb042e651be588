/* pair_style foundation: a potential's compiled library in LAMMPS, on any number of processes.

     pair_style foundation
     pair_coeff * * FOLDER Mg O

   FOLDER is written by `foundation export --for library`; after it comes the element of every atom type. Loaded as a
   plugin into an unchanged LAMMPS. The library computes the rows of this process's atoms; between the layers it asks for
   the rows of its ghosts, which LAMMPS's own communication brings. Of a potential with uncertainties,

     fix trust all pair 10 foundation uncertainty 0

   gives that of the force on every atom, f_trust, every 10 steps. */

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "pair.h"

#include <cmath>
#include <cstring>
#include <dlfcn.h>
#include <string>
#include <vector>

#include "foundation_model.h"

namespace LAMMPS_NS {

static const int FULL_LIST = 1; /* NeighConst::REQ_FULL; its header is not installed */

static const char *const SYMBOLS[] = {
    "X",  "H",  "He", "Li", "Be", "B",  "C",  "N",  "O",  "F",  "Ne", "Na", "Mg", "Al", "Si", "P",  "S",  "Cl", "Ar", "K",
    "Ca", "Sc", "Ti", "V",  "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",
    "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I",  "Xe", "Cs", "Ba", "La", "Ce", "Pr",
    "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W",  "Re", "Os", "Ir", "Pt", "Au",
    "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U",  "Np", "Pu", "Am", "Cm", "Bk", "Cf", "Es",
    "Fm", "Md", "No", "Lr", "Rf", "Db", "Sg", "Bh", "Hs", "Mt", "Ds", "Rg", "Cn", "Nh", "Fl", "Mc", "Lv", "Ts", "Og"};

/* The functions of a library that is loaded while LAMMPS runs. */
struct Library {
  void *handle = nullptr;
  decltype(&::foundation_open) open;
  decltype(&::foundation_compute) compute;
  decltype(&::foundation_close) close;
  decltype(&::foundation_force_uncertainty) force_uncertainty;
  decltype(&::foundation_cutoff) cutoff;
  decltype(&::foundation_num_elements) num_elements;
  decltype(&::foundation_elements) elements;
  decltype(&::foundation_float_bytes) float_bytes;
  decltype(&::foundation_largest_width) largest_width;
  decltype(&::foundation_last_error) last_error;
};

class PairFoundation : public Pair {
 public:
  explicit PairFoundation(LAMMPS *lammps) : Pair(lammps) {
    single_enable = 0;
    restartinfo = 0;
    one_coeff = 1;
    manybody_flag = 1;
    no_virial_fdotr_compute = 1;
    centroidstressflag = CENTROID_NOTAVAIL;
  }

  ~PairFoundation() override {
    if (allocated) memory->destroy(setflag), memory->destroy(cutsq);
    unload();
  }

  void settings(int count, char **) override {
    if (count) error->all(FLERR, "pair_style foundation takes no arguments; the potential is named by pair_coeff");
  }

  void coeff(int count, char **words) override {
    const int types = atom->ntypes;
    if (count != 3 + types || strcmp(words[0], "*") || strcmp(words[1], "*"))
      error->all(FLERR, "need: pair_coeff * * FOLDER and the element of each of the {} atom types", types);
    unload();
    load(words[2]);
    if (!allocated) {
      allocated = 1;
      memory->create(setflag, types + 1, types + 1, "pair:setflag");
      memory->create(cutsq, types + 1, types + 1, "pair:cutsq");
    }
    element_of_type.assign(types + 1, -1);
    for (int type = 1; type <= types; type++) element_of_type[type] = place_of(words[2 + type], words[2]);
    for (int i = 1; i <= types; i++)
      for (int j = i; j <= types; j++) setflag[i][j] = 1;
    /* numbers of the library's float type travel in LAMMPS's doubles */
    comm_forward = (library.largest_width() * library.float_bytes() + sizeof(double) - 1) / sizeof(double);
  }

  void init_style() override {
    if (!force->newton_pair) error->all(FLERR, "pair_style foundation needs `newton on`: forces on ghosts are sent back");
    neighbor->add_request(this, FULL_LIST);
    /* hybrid styles take this from their parts before pair_coeff has loaded the library */
    if (force->pair->comm_forward < comm_forward) force->pair->comm_forward = comm_forward;
  }

  double init_one(int i, int j) override {
    if (!setflag[i][j]) error->all(FLERR, "pair_style foundation: pair_coeff must name the elements of all types");
    return library.cutoff();
  }

  void compute(int eflag, int vflag) override {
    ev_init(eflag, vflag);
    find_edges();
    const int local = atom->nlocal, all = exchanging ? local + atom->nghost : local;
    energies.resize(local), forces.resize(3 * static_cast<size_t>(all));
    virials.resize(vflag_atom ? 9 * static_cast<size_t>(local) : 0);
    foundation_system system = {};
    system.num_local = local, system.num_atoms = all, system.num_edges = static_cast<int64_t>(senders.size());
    system.elements = elements.data(), system.row_pointers = row_pointers.data();
    system.senders = senders.data(), system.vectors = vectors.data();
    system.num_threads = comm->nthreads > 0 ? comm->nthreads : 1;
    system.exchange = exchanging ? exchange : nullptr, system.context = this;
    foundation_result result = {};
    result.atom_energies = energies.data(), result.forces = forces.data();
    result.atom_virials = vflag_atom ? virials.data() : nullptr;
    distances.resize(local), result.distances = distances.data();
    if (library.compute(model, &system, &result)) error->one(FLERR, "pair_style foundation: {}", library.last_error());
    for (int i = 0; i < all; i++)
      for (int k = 0; k < 3; k++) atom->f[i][k] += forces[3 * static_cast<size_t>(i) + k];
    if (eflag_global) eng_vdwl += result.energy;
    if (eflag_atom)
      for (int i = 0; i < local; i++) eatom[i] += energies[i];
    /* LAMMPS's virial is the sum of r f, in the order xx yy zz xy xz yz */
    static const int row[6] = {0, 1, 2, 0, 0, 1}, column[6] = {0, 1, 2, 1, 2, 2};
    for (int k = 0; k < 6 && vflag_global; k++) virial[k] -= symmetric(result.virial, row[k], column[k]);
    for (int i = 0; i < local && vflag_atom; i++)
      for (int k = 0; k < 6; k++) vatom[i][k] -= symmetric(&virials[9 * static_cast<size_t>(i)], row[k], column[k]);
  }

  /* For `fix pair`: both are 0 if the potential has no uncertainty. */
  void *extract_peratom(const char *name, int &columns) override {
    columns = 0;
    if (!strcmp(name, "distance")) return distances.data();
    if (strcmp(name, "uncertainty")) return nullptr;
    uncertainties.resize(distances.size());
    for (size_t i = 0; i < distances.size(); i++) {
      const double *f = atom->f[i];
      uncertainties[i] = library.force_uncertainty(model, distances[i], sqrt(f[0] * f[0] + f[1] * f[1] + f[2] * f[2]));
    }
    return uncertainties.data();
  }

  int pack_forward_comm(int count, int *atoms, double *buffer, int, int *) override {
    const int doubles = width_in_doubles();
    for (int n = 0; n < count; n++)
      memcpy(buffer + static_cast<size_t>(n) * doubles, rows + atoms[n] * row_bytes, row_bytes);
    return count * doubles;
  }

  void unpack_forward_comm(int count, int first, double *buffer) override {
    const int doubles = width_in_doubles();
    for (int n = 0; n < count; n++)
      memcpy(rows + (first + n) * row_bytes, buffer + static_cast<size_t>(n) * doubles, row_bytes);
  }

  double memory_usage() override {
    return Pair::memory_usage() + vectors.capacity() * sizeof(double) + senders.capacity() * sizeof(int64_t);
  }

 private:
  Library library;
  foundation_model *model = nullptr;
  std::vector<int> element_of_type;
  std::vector<int32_t> elements;
  std::vector<int64_t> row_pointers, senders;
  std::vector<double> vectors, energies, forces, virials, distances, uncertainties;
  char *rows = nullptr;
  size_t row_bytes = 0;
  bool exchanging = false;

  static double symmetric(const double *virial, int i, int j) { return 0.5 * (virial[3 * i + j] + virial[3 * j + i]); }

  int width_in_doubles() const { return static_cast<int>((row_bytes + sizeof(double) - 1) / sizeof(double)); }

  static void exchange(void *context, void *rows, int width) {
    auto *self = static_cast<PairFoundation *>(context);
    self->rows = static_cast<char *>(rows);
    self->row_bytes = static_cast<size_t>(width) * self->library.float_bytes();
    self->comm->forward_comm(self, self->width_in_doubles());
  }

  /* Neighbours within the cutoff. Ghosts of this process's own atoms are replaced by those, so that a single process
     exchanges nothing. */
  void find_edges() {
    const int local = atom->nlocal;
    const bool mapped = atom->map_style != Atom::MAP_NONE;
    exchanging = comm->nprocs > 1 || !mapped;
    const double cutoff_squared = library.cutoff() * library.cutoff();
    elements.resize(exchanging ? local + atom->nghost : local), row_pointers.assign(local + 1, 0), senders.clear(), vectors.clear();
    std::vector<int> place(local, -1);
    for (int n = 0; n < list->inum; n++) place[list->ilist[n]] = n;
    for (size_t i = 0; i < elements.size(); i++) elements[i] = element_of_type[atom->type[i]];
    for (int i = 0; i < local; i++) {
      const double *x = atom->x[i];
      const int *neighbors = place[i] < 0 ? nullptr : list->firstneigh[i];
      for (int k = 0, many = neighbors ? list->numneigh[i] : 0; k < many; k++) {
        const int j = neighbors[k] & NEIGHMASK;
        const double *y = atom->x[j], d[3] = {y[0] - x[0], y[1] - x[1], y[2] - x[2]};
        if (d[0] * d[0] + d[1] * d[1] + d[2] * d[2] >= cutoff_squared) continue;
        const int owner = mapped ? atom->map(atom->tag[j]) : j;
        senders.push_back(owner >= 0 && owner < local ? owner : j);
        vectors.insert(vectors.end(), d, d + 3);
      }
      row_pointers[i + 1] = static_cast<int64_t>(senders.size());
    }
  }

  int place_of(const char *symbol, const char *folder) {
    for (int place = 0; place < library.num_elements(); place++)
      if (!strcmp(symbol, SYMBOLS[library.elements()[place]])) return place;
    error->all(FLERR, "pair_coeff: the potential in {} does not know the element {}", folder, symbol);
    return -1;
  }

  template <typename Function> void find(Function &function, const char *name, const std::string &file) {
    function = reinterpret_cast<Function>(dlsym(library.handle, name));
    if (!function) error->all(FLERR, "{} lacks {}: export the library again", file, name);
  }

  void load(const char *folder) {
    const std::string file = std::string(folder) + "/libfoundation_model.so", weights = std::string(folder) + "/model.weights";
    library.handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library.handle)
      error->all(FLERR, "pair_coeff: no library in {} ({}); write it with `foundation export --for library`", folder, dlerror());
    find(library.open, "foundation_open", file), find(library.compute, "foundation_compute", file);
    find(library.close, "foundation_close", file), find(library.cutoff, "foundation_cutoff", file);
    find(library.num_elements, "foundation_num_elements", file), find(library.elements, "foundation_elements", file);
    find(library.float_bytes, "foundation_float_bytes", file), find(library.last_error, "foundation_last_error", file);
    find(library.largest_width, "foundation_largest_width", file);
    find(library.force_uncertainty, "foundation_force_uncertainty", file);
    if (library.open(weights.c_str(), &model)) error->all(FLERR, "pair_coeff: {}", library.last_error());
  }

  void unload() {
    if (model) library.close(model);
    if (library.handle) dlclose(library.handle);
    model = nullptr, library.handle = nullptr;
  }
};

}    // namespace LAMMPS_NS

/* lammpsplugin.h is not installed: what LAMMPS expects of a plugin. */
struct lammpsplugin_t {
  const char *version, *style, *name, *info, *author;
  union {
    void *(*v1)(void *);
    void *v2;
  } creator;
  void *handle;
};

static void *create(void *lammps) { return new LAMMPS_NS::PairFoundation(static_cast<LAMMPS_NS::LAMMPS *>(lammps)); }

extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void *lammps, void *handle, void *register_plugin) {
  lammpsplugin_t plugin = {};
  plugin.version = static_cast<LAMMPS_NS::LAMMPS *>(lammps)->version;
  plugin.style = "pair", plugin.name = "foundation", plugin.info = "potentials of foundation", plugin.author = "foundation";
  plugin.creator.v1 = create, plugin.handle = handle;
  reinterpret_cast<void (*)(lammpsplugin_t *, void *)>(register_plugin)(&plugin, lammps);
}
