# Finds what the build needs. Everything comes from Debian packages (see `./dev setup`); nothing is
# downloaded. Optional parts are AUTO (use if found), ON (an error if not found) or OFF.

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(Boost 1.81 CONFIG REQUIRED COMPONENTS json url)
find_package(Protobuf REQUIRED)
find_package(prometheus-cpp REQUIRED)
find_package(simdjson REQUIRED)
find_package(spdlog REQUIRED)
find_package(fmt REQUIRED)
find_package(CLI11 REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(SQLite3 REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)

# moiety_optional(NAME found-variable): settles MOIETY_<NAME>, reports it in the summary.
macro(moiety_optional name found)
  set(MOIETY_${name} AUTO CACHE STRING "AUTO, ON or OFF")
  set_property(CACHE MOIETY_${name} PROPERTY STRINGS AUTO ON OFF)
  if(MOIETY_${name} STREQUAL "OFF")
    set(MOIETY_HAVE_${name} FALSE)
    list(APPEND moiety_summary "${name}: off")
  elseif(${found})
    set(MOIETY_HAVE_${name} TRUE)
    list(APPEND moiety_summary "${name}: found ${${name}_REPORT}")
  elseif(MOIETY_${name} STREQUAL "ON")
    message(FATAL_ERROR "MOIETY_${name}=ON but ${name} was not found")
  else()
    set(MOIETY_HAVE_${name} FALSE)
    list(APPEND moiety_summary "${name}: not found")
  endif()
endmacro()

pkg_check_modules(UCX QUIET IMPORTED_TARGET ucx)
set(UCX_REPORT "${UCX_VERSION}")
moiety_optional(UCX UCX_FOUND)

find_package(MPI QUIET COMPONENTS C)
set(MPI_REPORT "${MPI_C_VERSION}")
moiety_optional(MPI MPI_C_FOUND)

find_package(CUDAToolkit QUIET)
set(CUDA_REPORT "${CUDAToolkit_VERSION} (no kernel uses it yet)")
moiety_optional(CUDA CUDAToolkit_FOUND)

find_library(NCCL_LIBRARY nccl)
set(NCCL_REPORT "${NCCL_LIBRARY} (no lane uses it yet)")
moiety_optional(NCCL NCCL_LIBRARY)

# Tests and benches are built unless BUILD_TESTING is off.
find_package(GTest QUIET)
find_package(benchmark QUIET)

function(moiety_print_summary)
  message(STATUS "moiety ${PROJECT_VERSION}: ${CMAKE_BUILD_TYPE}, sanitizer '${MOIETY_SANITIZE}'")
  foreach(line IN LISTS moiety_summary)
    message(STATUS "  ${line}")
  endforeach()
endfunction()
