# %% [markdown]
# # Quantum nuclei with i-PI
#
# i-PI (`pip install ipi`) moves the beads of a path integral and asks for forces through a socket. ASE's client answers
# with a potential. Two beads and a few steps only show that both talk; water near 300 K needs 32 beads.

# %%
import os
import subprocess
import sys
import time
from pathlib import Path

from ase.build import bulk
from ase.calculators.socketio import SocketClient

import foundation

atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True)
cell = " ".join(map(str, atoms.cell.cellpar()))
lines = [f"{each.symbol} {each.x} {each.y} {each.z}" for each in atoms]
head = [str(len(atoms)), f"# CELL(abcABC): {cell} cell{{angstrom}} positions{{angstrom}}"]
Path("start.xyz").write_text("\n".join([*head, *lines]) + "\n")
name = f"foundation-{os.getpid()}"
Path("input.xml").write_text(
    f"""<simulation verbosity="low">
  <output prefix="simulation">
    <properties stride="1" filename="out"> [ step, conserved{{electronvolt}}, potential{{electronvolt}} ] </properties>
  </output>
  <total_steps> 5 </total_steps>
  <ffsocket mode="unix" name="potential"> <address> {name} </address> </ffsocket>
  <system>
    <initialize nbeads="2">
      <file mode="xyz"> start.xyz </file>
      <velocities mode="thermal" units="kelvin"> 300 </velocities>
    </initialize>
    <forces> <force forcefield="potential"> </force> </forces>
    <motion mode="dynamics">
      <dynamics mode="nvt">
        <thermostat mode="pile_g"> <tau units="femtosecond"> 100 </tau> </thermostat>
        <timestep units="femtosecond"> 0.5 </timestep>
      </dynamics>
    </motion>
    <ensemble> <temperature units="kelvin"> 300 </temperature> </ensemble>
  </system>
</simulation>
"""
)

# %% [markdown]
# ## Server and client

# %%
server = subprocess.Popen([Path(sys.executable).with_name("i-pi"), "input.xml"])
socket = Path(f"/tmp/ipi_{name}")
while not socket.exists() and server.poll() is None:
    time.sleep(0.1)
atoms.calc = foundation.Calculator("sevennet-0")
client = None
while client is None:
    try:
        client = SocketClient(unixsocket=name)
    except ConnectionRefusedError:  # the socket is there a moment before i-PI listens
        time.sleep(0.1)
client.run(atoms, use_stress=True)
code = server.wait(60)
print(Path("simulation.out").read_text())
