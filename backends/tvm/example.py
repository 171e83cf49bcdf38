"""A small C++ program that runs a compiled artifact, and the CMake file that builds it."""

from __future__ import annotations

from pathlib import Path
from string import Template

from planish.backends.tvm.cpu import ASK_FOR_TILES
from planish.backends.tvm.isa import Isa
from planish.backends.tvm.program import Port, Program

PROGRAM, BUILD = "example.cc", "CMakeLists.txt"


def write_example(program: Program, isa: Isa, folder: Path) -> None:
    """Write both files into the artifact's folder."""
    entry = program.entries[0]
    ports = [*entry.inputs, *entry.outputs]
    lines = [f"  arrays.emplace_back({_type(port)});  // {_plain(port.name)}" for port in ports]
    text = _PROGRAM.substitute(
        inputs=len(entry.inputs),
        outputs=len(entry.outputs),
        names=" ".join(_plain(port.name).upper() for port in entry.inputs),
        arrays="\n".join(lines),
        constants=program.constants.nbytes,
        arena=program.arena_bytes,
        needs="\n".join(_need(name) for name in _checkable(isa)),
    )
    (folder / PROGRAM).write_text(text, encoding="utf-8", newline="\n")
    (folder / BUILD).write_text(_BUILD, encoding="utf-8", newline="\n")


_COMPILERS_NAMES = {
    "bmi1": "bmi",
    "avx512_bitalg": "avx512bitalg",
    "avx512_vnni": "avx512vnni",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx_vnni": "avxvnni",
}
_IMPLIED = frozenset({"f16c", "movbe", "abm", "amx_int8"})  # compilers can't ask for them; CPUs with others have them


def _checkable(isa: Isa) -> list[str]:
    if not isa.triple.startswith("x86_64"):
        return []
    return sorted(_COMPILERS_NAMES.get(name, name) for name in isa.features - _IMPLIED)


def _need(feature: str) -> str:
    if feature == "amx_tile":
        asked = ", ".join(map(str, ASK_FOR_TILES))
        return f'  if (syscall({asked})) throw std::runtime_error("this system grants no AMX tiles");'
    return f'  if (!__builtin_cpu_supports("{feature}")) throw std::runtime_error("this CPU lacks {feature}");'


def _type(port: Port) -> str:
    kind = port.dtype.rstrip("0123456789")
    code = {"int": "kDLInt", "uint": "kDLUInt", "float": "kDLFloat", "bool": "kDLBool"}[kind]
    shape = ", ".join(map(str, port.shape or (1,)))
    return f"std::vector<int64_t>{{{shape}}}, DLDataType{{{code}, {port.dtype.removeprefix(kind) or 8}, 1}}"


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


_PROGRAM = Template("""\
// Runs the model once. Each input is read from a raw file; output i is written to output_<i>.bin.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

struct Array {  // dense, and on a cache line, as compiled code expects it
  std::vector<int64_t> shape, strides;
  size_t bytes = 1;
  char* data;
  DLTensor tensor;

  Array(std::vector<int64_t> extents, DLDataType type) : shape(extents), strides(extents) {
    int64_t count = 1;
    for (size_t i = shape.size(); i-- > 0; count *= shape[i]) strides[i] = count;
    bytes = count * (type.bits / 8);
    data = static_cast<char*>(std::aligned_alloc(64, std::max<size_t>(64, (bytes + 63) / 64 * 64)));
    if (!data) throw std::bad_alloc();
    tensor = {data, {kDLCPU, 0}, int32_t(shape.size()), type, shape.data(), strides.data(), 0};
  }
  Array(const Array&) = delete;
  ~Array() { std::free(data); }

  void read(const std::string& path) {
    if (!std::ifstream(path, std::ios::binary).read(data, bytes))
      throw std::runtime_error(path + ": can't read " + std::to_string(bytes) + " bytes");
  }
  void write(const std::string& path) {
    if (!std::ofstream(path, std::ios::binary).write(data, bytes)) throw std::runtime_error(path + ": can't write");
  }
};

int main(int argc, char** argv) try {
  const int inputs = $inputs, outputs = $outputs;
  if (argc != 2 + inputs) return std::cerr << "usage: example FOLDER $names\\n", 2;
$needs
  const std::string folder = argv[1];
  const DLDataType byte{kDLUInt, 8, 1};
  std::deque<Array> arrays;
$arrays
  arrays.emplace_back(std::vector<int64_t>{$constants}, byte);  // weights
  arrays.emplace_back(std::vector<int64_t>{$arena}, byte);  // working memory
  for (int i = 0; i < inputs; ++i) arrays[i].read(argv[2 + i]);
  arrays[inputs + outputs].read(folder + "/constants.bin");

  tvm::ffi::Module module = tvm::ffi::Module::LoadFromFile(folder + "/model.so");
  tvm::ffi::Function run = module->GetFunction("main", false).value();
  std::vector<tvm::ffi::AnyView> arguments;
  for (Array& array : arrays) arguments.emplace_back(&array.tensor);
  tvm::ffi::Any result;
  run.CallPacked(arguments.data(), int32_t(arguments.size()), &result);
  for (int i = 0; i < outputs; ++i) arrays[inputs + i].write("output_" + std::to_string(i) + ".bin");
  return 0;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\\n";
  return 1;
}
""")

_BUILD = """\
# cmake -B build && cmake --build build && build/example . INPUT...
cmake_minimum_required(VERSION 3.19)
project(planish_example CXX)
# Python_EXECUTABLE names another Python that has apache-tvm-ffi, whose headers and library are taken.
find_package(Python REQUIRED COMPONENTS Interpreter)
execute_process(
  COMMAND ${Python_EXECUTABLE} -m tvm_ffi.config --cmakedir
  OUTPUT_VARIABLE tvm_ffi_DIR OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
find_package(tvm_ffi REQUIRED CONFIG)
add_executable(example example.cc)
target_compile_features(example PRIVATE cxx_std_17)
target_link_libraries(
  example PRIVATE -Wl,--no-as-needed ${CMAKE_CURRENT_SOURCE_DIR}/libtvm_runtime.so tvm_ffi::header tvm_ffi::shared)
"""
