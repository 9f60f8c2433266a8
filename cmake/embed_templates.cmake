# Each generates one source that holds files of the tree: path, text, in path order, with line numbers kept.
function(sapwood_embed output root include namespace type function)
    list(SORT ARGN)
    add_custom_command(
        OUTPUT ${output}
        COMMAND ${CMAKE_COMMAND} -DROOT=${root} -DOUTPUT=${output} "-DFILES=${ARGN}" -DINCLUDE=${include} -DNAMESPACE=${namespace}
                -DTYPE=${type} -DFUNCTION=${function} -P ${CMAKE_CURRENT_SOURCE_DIR}/cmake/write_embedded.cmake
        DEPENDS ${ARGN} ${CMAKE_CURRENT_SOURCE_DIR}/cmake/write_embedded.cmake
        VERBATIM)
endfunction()

# Every file below templates/.
function(sapwood_embed_templates output)
    set(root ${CMAKE_CURRENT_SOURCE_DIR}/templates)
    file(GLOB_RECURSE files CONFIGURE_DEPENDS ${root}/*.h ${root}/*.in)
    sapwood_embed(${output} ${root} kernel/template_store.h sapwood jit::Header embedded_templates ${files})
endfunction()

# tuning/epoch and every index.json below tuning/ (the shipped choices); there may be none.
function(sapwood_embed_tuning output)
    set(root ${CMAKE_CURRENT_SOURCE_DIR}/tuning)
    file(GLOB_RECURSE files CONFIGURE_DEPENDS ${root}/index.json)
    sapwood_embed(${output} ${root} tune/embedded.h sapwood::tune EmbeddedFile embedded_tuning ${files} ${root}/epoch)
endfunction()
