# Whole-model tests: expected logits, equal bits.
moiety_test(logits_test LABEL golden TIMEOUT 300
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/logits_test.cc ${CMAKE_CURRENT_LIST_DIR}/golden_support.cc
  LINK moiety_router)
moiety_test(bits_test LABEL golden TIMEOUT 300
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/bits_test.cc ${CMAKE_CURRENT_LIST_DIR}/golden_support.cc
  LINK moiety_router moiety_worker moiety_fabric)
moiety_test(dense_layers_test LABEL golden TIMEOUT 300
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/dense_layers_test.cc ${CMAKE_CURRENT_LIST_DIR}/golden_support.cc
  LINK moiety_router moiety_worker moiety_fabric)
