file(REMOVE_RECURSE
  "CMakeFiles/poses.dir/examples/poses.cpp.o"
  "CMakeFiles/poses.dir/examples/poses.cpp.o.d"
  "poses"
  "poses.pdb"
)

# Per-language clean rules from dependency scanning.
foreach(lang CXX)
  include(CMakeFiles/poses.dir/cmake_clean_${lang}.cmake OPTIONAL)
endforeach()
