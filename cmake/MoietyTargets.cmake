# Targets of this project: warnings, standard, output folders and sanitizers in one place.

set(MOIETY_SANITIZE "" CACHE STRING "empty, 'address' (with undefined) or 'thread'")
set_property(CACHE MOIETY_SANITIZE PROPERTY STRINGS "" address thread)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CCACHE_PROGRAM}")
endif()

add_library(moiety_options INTERFACE)
target_compile_features(moiety_options INTERFACE cxx_std_20)
target_include_directories(moiety_options INTERFACE "${PROJECT_SOURCE_DIR}" "${PROJECT_BINARY_DIR}")
# No contraction: a*b+c is rounded the same in every function, so equal inputs give equal bits.
target_compile_options(moiety_options INTERFACE -Wall -Wextra -Werror -ffp-contract=off)
target_link_libraries(moiety_options INTERFACE Threads::Threads)
if(MOIETY_SANITIZE STREQUAL "address")
  target_compile_options(moiety_options INTERFACE
    -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
    # g++ 12 takes the unused alternative of a Result for uninitialised under ASan.
    -Wno-maybe-uninitialized)
  target_link_options(moiety_options INTERFACE -fsanitize=address,undefined)
elseif(MOIETY_SANITIZE STREQUAL "thread")
  # gcc 12 does not model std::atomic_thread_fence under TSan and says so as a warning.
  target_compile_options(moiety_options INTERFACE -fsanitize=thread -Wno-tsan)
  target_link_options(moiety_options INTERFACE -fsanitize=thread)
elseif(MOIETY_SANITIZE)
  message(FATAL_ERROR "MOIETY_SANITIZE is '${MOIETY_SANITIZE}': use address or thread")
endif()

# moiety_library(name SOURCES ... LINK ...): the static library moiety_<name>.
function(moiety_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
  add_library(moiety_${name} STATIC ${arg_SOURCES})
  target_link_libraries(moiety_${name} PUBLIC moiety_options ${arg_LINK})
endfunction()

# moiety_program(name SOURCES ... LINK ...): build/bin/<name>, installed.
function(moiety_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE moiety_options ${arg_LINK})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
  install(TARGETS ${name} RUNTIME DESTINATION bin)
endfunction()

# moiety_test(name LABEL unit|golden|cluster SOURCES ... LINK ... [TIMEOUT seconds] [SERIAL]): a
# GoogleTest program, one ctest entry per test case; SERIAL: nothing else runs beside it. One label
# each: gtest_discover_tests drops a second one.
function(moiety_test name)
  cmake_parse_arguments(arg "SERIAL" "LABEL;TIMEOUT" "SOURCES;LINK" ${ARGN})
  if(NOT BUILD_TESTING)
    return()
  endif()
  if(NOT GTest_FOUND)
    message(FATAL_ERROR "tests need GoogleTest (libgtest-dev), or configure with -DBUILD_TESTING=OFF")
  endif()
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 120)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE moiety_options ${arg_LINK} GTest::gmock_main)
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)  # the tests themselves need no speed
  target_compile_definitions(${name} PRIVATE
    MOIETY_SOURCE_DIR="${PROJECT_SOURCE_DIR}" MOIETY_BIN_DIR="${PROJECT_BINARY_DIR}/bin")
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/tests")
  include(GoogleTest)
  gtest_discover_tests(${name} TEST_PREFIX "${name}:" DISCOVERY_TIMEOUT 60
    PROPERTIES LABELS ${arg_LABEL} TIMEOUT ${arg_TIMEOUT} RUN_SERIAL ${arg_SERIAL})
endfunction()
