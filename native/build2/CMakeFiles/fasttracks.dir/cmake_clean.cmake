file(REMOVE_RECURSE
  "CMakeFiles/fasttracks.dir/build/kernels/architectures.cpp.o"
  "CMakeFiles/fasttracks.dir/build/kernels/architectures.cpp.o.d"
  "CMakeFiles/fasttracks.dir/build/kernels/sm_80.cpp.o"
  "CMakeFiles/fasttracks.dir/build/kernels/sm_80.cpp.o.d"
  "CMakeFiles/fasttracks.dir/build/kernels/sm_90.cpp.o"
  "CMakeFiles/fasttracks.dir/build/kernels/sm_90.cpp.o.d"
  "CMakeFiles/fasttracks.dir/src/cuda.cpp.o"
  "CMakeFiles/fasttracks.dir/src/cuda.cpp.o.d"
  "CMakeFiles/fasttracks.dir/src/fasttracks.cpp.o"
  "CMakeFiles/fasttracks.dir/src/fasttracks.cpp.o.d"
  "CMakeFiles/fasttracks.dir/src/json.cpp.o"
  "CMakeFiles/fasttracks.dir/src/json.cpp.o.d"
  "CMakeFiles/fasttracks.dir/src/kernels.cpp.o"
  "CMakeFiles/fasttracks.dir/src/kernels.cpp.o.d"
  "CMakeFiles/fasttracks.dir/src/plan.cpp.o"
  "CMakeFiles/fasttracks.dir/src/plan.cpp.o.d"
  "CMakeFiles/fasttracks.dir/src/tracks.cpp.o"
  "CMakeFiles/fasttracks.dir/src/tracks.cpp.o.d"
  "CMakeFiles/fasttracks.dir/src/weights.cpp.o"
  "CMakeFiles/fasttracks.dir/src/weights.cpp.o.d"
  "libfasttracks.pdb"
  "libfasttracks.so"
  "libfasttracks.so.1"
  "libfasttracks.so.1.0.0"
)

# Per-language clean rules from dependency scanning.
foreach(lang CXX)
  include(CMakeFiles/fasttracks.dir/cmake_clean_${lang}.cmake OPTIONAL)
endforeach()
